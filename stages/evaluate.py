"""The weights of a run -> reports/<workload>/metrics/<run>.json, a grid of samples, and the samples for the figures."""

import json
import shutil
from pathlib import Path

from cmcore.assemble.evaluation import endpoint_run
from cmcore.assemble.training import SUMMARY
from cmcore.atomic import replacing, write_atomic
from cmcore.data.png import to_png
from cmcore.pipeline.common import Setup, load
from cmcore.pipeline.files import write_arrays, write_json
from cmcore.pipeline.progress import listener
from cmcore.pipeline.ready import Find, Results, put
from cmcore.pipeline.track import track
from stages.evaluate_job import Inputs, evaluate


def reads(setup: Setup, name: str) -> list[Path]:
    """The files that decide the result, beside parameters and code."""
    folders, run = setup.folders, setup.project.run(name)
    return [folders.reference, folders.runs / name, folders.weights(run.init), folders.weights(run.teacher)]


def make(setup: Setup, name: str, find: Find) -> Results:
    """Evaluate the run in a folder of its own."""
    run, folders, config = setup.project.run(name), setup.folders, setup.project.sections.eval
    source = endpoint_run(setup.project.runs, run)
    teacher = find(folders.weights(source)) if source else None
    work = folders.work / folders.workload / "shards"
    inputs = Inputs(find(folders.reference), find(folders.runs / name), teacher, work)
    mark = json.loads((inputs.results / SUMMARY).read_text(encoding="utf-8"))["fingerprint"]
    out = folders.work / folders.workload / "evaluate" / name
    samples, grid, metrics = (f"{name}.{kind}" for kind in ("npz", "png", "json"))
    with setup.tracker(run, mark) as tracker:
        with listener(f"evaluate {name}", "img") as listen:
            outcome = evaluate(setup.compute, run, folders.workload, config, inputs, listen)
        with replacing(out) as folder:
            write_arrays(folder / samples, outcome.samples)
            write_atomic(folder / grid, to_png(next(iter(outcome.samples.values())), columns=8))
            write_json(folder / metrics, outcome.metrics.to_json())
        track(outcome.metrics, tracker)
        tracker.artifact(out / grid, "grids")
        tracker.artifact(out / metrics, "records")
    shutil.rmtree(outcome.store, ignore_errors=True)
    return {
        folders.samples / samples: out / samples,
        folders.reports / "grids" / grid: out / grid,
        folders.reports / "metrics" / metrics: out / metrics,
    }


def main(name: str) -> None:
    """Evaluate the run and write what it declares."""
    setup = load()
    setup.folders.require(reads(setup, name))
    put(make(setup, name, Path))
