"""Tags, metrics and files that a tracker gets of a run, an evaluation and a report."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from cmcore.evaluate.records import RunMetrics, score_name
from cmcore.tracking.base import Tracker


def run_tags(workload: str, name: str, method: str, fingerprint: str) -> dict[str, str]:
    """Tags of a training run; `run` and `fingerprint` identify it."""
    return {"workload": workload, "run": name, "method": method, "fingerprint": fingerprint, "kind": "run"}


def track(metrics: RunMetrics, tracker: Tracker) -> None:
    """The records of an evaluation.

    `eval/` are final values, at step 0: MLflow draws a bar for each run then, where it would draw a line of one point
    over any other step. `eval_by_nfe/` are lines over function evaluations; `snapshots/` stand over images seen, as all
    of training does.
    """
    for record in metrics.records:
        p = record.provenance
        tracker.metrics({f"eval/{score_name(record)}": record.value}, 0)
        tracker.metrics({f"eval_by_nfe/{record.key}": record.value}, p.nfe)
    for record in metrics.snapshots:
        tracker.metrics({f"snapshots/{score_name(record)}": record.value}, record.provenance.images)
    sources = [record.provenance for record in metrics.records]
    tracker.tag({"nfe": _listed(p.nfe for p in sources), "ema": _listed(p.ema for p in sources)})


def _listed(values: Iterable[Any]) -> str:
    return ", ".join(map(str, sorted(set(values))))


def track_report(folder: Path, tracker: Tracker) -> None:
    """The page, which MLflow shows as it is, the tables and the figures."""
    for path in sorted([folder / "index.html", *folder.glob("tables/*"), *folder.glob("figures/*.png")]):
        if path.is_file():
            tracker.artifact(path, "" if path.parent == folder else path.parent.name)
