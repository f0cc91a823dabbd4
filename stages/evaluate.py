"""The weights of a run -> reports/<workload>/metrics/<run>.json, a grid of samples, and the samples for the figures."""

import json
from pathlib import Path

from cmcore.assemble.evaluation import endpoint_run
from cmcore.assemble.training import SUMMARY
from cmcore.atomic import write_atomic
from cmcore.data.png import to_png
from cmcore.pipeline.common import Setup, load
from cmcore.pipeline.files import write_arrays, write_json
from cmcore.pipeline.progress import listener
from cmcore.pipeline.tidy import remove
from cmcore.pipeline.track import track
from stages.evaluate_job import EvaluationFiles, evaluate


def produce(setup: Setup, name: str) -> list[Path]:
    """Evaluate the run and write its outputs; the result is the work files that recorded outputs make superfluous."""
    run, folders, config = setup.project.run(name), setup.folders, setup.project.sections.eval
    folders.require([folders.reference, folders.runs / name, folders.weights(run.init), folders.weights(run.teacher)])
    source = endpoint_run(setup.project.runs, run)
    teacher = folders.weights(source) if source else None
    work = folders.work / folders.workload / "shards"
    inputs = EvaluationFiles(folders.reference, folders.runs / name, teacher, work)
    fingerprint = json.loads((inputs.results / SUMMARY).read_text(encoding="utf-8"))["fingerprint"]
    grid, metrics = folders.reports / "grids" / f"{name}.png", folders.reports / "metrics" / f"{name}.json"
    with setup.tracker(run, fingerprint) as tracker:
        with listener(f"evaluate {name}", "img") as listen:
            outcome = evaluate(setup.compute, run, folders.workload, config, inputs, listen)
        write_arrays(folders.samples / f"{name}.npz", outcome.samples)
        write_atomic(grid, to_png(next(iter(outcome.samples.values())), columns=8))
        write_json(metrics, outcome.metrics.to_json())
        track(outcome.metrics, tracker)
        tracker.artifact(grid, "grids")
        tracker.artifact(metrics, "records")
    return [outcome.store]


def main(name: str) -> None:
    """Evaluate the run and write its outputs."""
    remove(produce(load(), name))
