"""The weights of a run -> reports/<workload>/metrics/<run>.json, a grid of samples, and the samples for the figures."""

import json

from cmcore.assemble.evaluation import Outcome, evaluate_run, teacher_of
from cmcore.assemble.project import Run
from cmcore.data.png import to_png
from cmcore.edge.inception import load_inception
from cmcore.edge.ray_run import execute, pick_device
from cmcore.edge.settings import ComputeConfig
from cmcore.evaluate.records import from_json
from cmcore.evaluate.settings import EvalConfig
from cmcore.evaluate.suite import load_reference
from cmcore.tracking.base import Tracker
from cmcore.train.checkpoint import write_atomic
from stages.common import Folders, load
from stages.files import write_arrays, write_json
from stages.progress import Emit, listener, reporter
from stages.reference import INCEPTION


def job(compute: ComputeConfig, run: Run, config: EvalConfig, folders: Folders, emit: Emit) -> Outcome:
    """Sample the run's model and measure the samples."""
    device = pick_device(compute)
    references = [load_reference(folders.reference)]
    inception, why_not = load_inception(config.inception, device)
    if inception is not None:
        references.append(load_reference(folders.reference / INCEPTION, inception, references[0].digest))
    return evaluate_run(
        run, folders.workload, config, references, folders.runs / run.name, teacher_of(run, folders.runs),
        fid_absent=why_not, on_progress=reporter(emit), device=device,
    )  # fmt: skip


def track(metrics: dict, tracker: Tracker) -> None:
    """Quality against NFE, and of snapshots against images seen: MLflow draws both as curves, a line per run."""
    for record in map(from_json, metrics["records"]):
        nfe = record.provenance.nfe
        tracker.metrics({f"eval/{record.metric}": record.value, f"eval/{record.metric}_nfe{nfe}": record.value}, nfe)
    for record in map(from_json, metrics["snapshots"]):
        tracker.metrics({f"snapshots/{record.metric}": record.value}, record.provenance.images)


def main(name: str) -> None:
    """Evaluate the run and write what it declares."""
    setup = load()
    run, folders, config = setup.project.run(name), setup.folders, setup.project.sections.eval
    mark = json.loads((folders.runs / name / "summary.json").read_text(encoding="utf-8"))["fingerprint"]
    with setup.tracker(run, mark) as tracker:
        with listener(f"evaluate {name}", "img") as listen:
            outcome = execute(setup.compute, job, setup.compute, run, config, folders, progress=listen)
        metrics, grid = folders.reports / "metrics" / f"{name}.json", folders.reports / "grids" / f"{name}.png"
        write_arrays(folders.samples / f"{name}.npz", outcome.samples)
        write_atomic(grid, to_png(next(iter(outcome.samples.values())), columns=8))
        write_json(metrics, outcome.metrics)
        track(outcome.metrics, tracker)
        tracker.artifact(grid, "grids")
        tracker.artifact(metrics, "records")
