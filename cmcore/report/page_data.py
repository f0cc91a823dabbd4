"""What the charts and the provenance of the page are drawn from, as plain JSON data."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from cmcore.evaluate.records import MetricRecord, ReferenceFacts
from cmcore.report.captions import BASELINES, is_high, is_ranked, metric_title, run_title, start
from cmcore.report.curves import MOST
from cmcore.report.headline import leaders
from cmcore.report.published import families
from cmcore.report.readers import Operations, RunReport
from cmcore.report.seeds import pooled, values

OTHER = "Other"
POINTS = 80  # of a curve of losses


def page_data(
    runs: Sequence[RunReport],
    reference: ReferenceFacts | None,
    operations: Mapping[str, Operations],
    best: Collection[str] = (),
) -> dict[str, Any]:
    """Runs with their records, snapshots, scans and losses.

    Args:
        runs: all of them.
        reference: for the baselines, or None.
        operations: of each run, where they are known.
        best: runs that are shown at first where there are many; by default `leaders`.
    """
    by_name = {run.facts.run: run for run in runs}
    seconds = {name: run.time.seconds for name, run in by_name.items() if run.time is not None and run.time.device}
    images = {name: float(run.facts.images) for name, run in by_name.items() if run.facts.images}
    trained = {name: one.training for name, one in operations.items()}
    measured_with: list[list[Any]] = []
    best = best or leaders(runs)
    return {
        "metric": next((r.name for run in runs for r in run.records if r.key == "fd"), "fd"),
        "titles": {r.key: {"title": metric_title(r.key), "high": is_high(r.key)} for run in runs for r in run.records},
        "families": list(dict.fromkeys([*families().values(), OTHER])),
        "baselines": [
            [BASELINES.get(r.provenance.run, r.provenance.run), r.value]
            for r in (reference.baseline if reference else ())
            if r.key == "fd"
        ],
        "runs": [
            {
                "id": run.facts.run,
                "title": run_title(run),
                "family": families().get(run.facts.method, OTHER),
                "ranked": is_ranked(run),
                "best": len(runs) <= MOST or run.facts.run in best,
                "init": start(run.facts),
                "parameters": run.facts.parameters,
                "device": run.time.device if run.time else "",
                "code": [run.trained_by, run.evaluated_by],
                "seeds": [run.facts.seed, *(one.seed for one in run.replicates)],
                "cost": {
                    name: [found.get(run.facts.run), chain(run, by_name, found)]
                    for name, found in (("images", images), ("seconds", seconds), ("operations", trained))
                },
                "evaluation": operations[run.facts.run].evaluation if run.facts.run in operations else None,
                "rows": _rows(run, measured_with),
                "snapshots": _points(run.snapshots, "images"),
                "scan": [[r.provenance.levels[1], short(r.value), short(r.spread)] for r in run.scan if r.key == "fd"],
                "loss": _loss(run),
            }
            for run in runs
        ],
        "with": measured_with,
    }


def chain(run: RunReport, by_name: Mapping[str, RunReport], found: Mapping[str, float]) -> float | None:
    """The cost of a run and of those that it starts from; None where one of them is not known."""
    total, seen = 0.0, set[str]()
    name = run.facts.run
    while name in by_name and name not in seen:
        if name not in found:
            return None
        seen.add(name)
        total += found[name]
        name = by_name[name].facts.init
    return total


def short(value: float) -> float:
    """Six digits, which no chart exceeds."""
    return float(f"{value:.6g}")


def _rows(run: RunReport, measured_with: list[list[Any]]) -> list[dict[str, Any]]:
    by_seed = values(run)
    rows: dict[tuple[int, str], dict[str, Any]] = {}
    for record in pooled(run).records:
        p = record.provenance
        row = rows.setdefault(
            (p.nfe, p.sampler),
            {
                "nfe": p.nfe,
                "sampler": p.sampler,
                "levels": [short(level) for level in p.levels],
                "ema": p.ema,
                "images": p.images,
                "noise": p.seed,
                "fingerprint": p.fingerprint,
                "values": {},
            },
        )
        facts = [p.extractor, p.extractor_digest, p.reference_digest, p.reference_count, p.samples]
        if facts not in measured_with:
            measured_with.append(facts)
        each = by_seed[(p.nfe, p.sampler), record.key]
        row["values"][record.key] = [
            short(record.value),
            short(record.spread),
            record.spread_of,
            measured_with.index(facts),
            [[seed, short(value)] for seed, value in sorted(each.items())] if len(each) > 1 else [],
        ]
    return [row for _, row in sorted(rows.items())]


def _points(records: Sequence[MetricRecord], of: str) -> list[list[float]]:
    return [
        [getattr(r.provenance, of), r.provenance.nfe, short(r.value), short(r.spread)] for r in records if r.key == "fd"
    ]


def _loss(run: RunReport) -> list[list[float]]:
    """At most about `POINTS` means of consecutive losses, at the last of their images."""
    size = max(1, -(-len(run.history) // POINTS))
    parts = [run.history[place : place + size] for place in range(0, len(run.history), size)]
    return [[part[-1]["images"], short(sum(line["loss"] for line in part) / len(part))] for part in parts]
