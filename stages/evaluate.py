"""The weights of a run -> reports/<workload>/metrics/<run>.json, a grid of samples, and the samples for the figures."""

import json
from dataclasses import dataclass
from pathlib import Path

from cmcore.assemble.evaluation import Outcome, evaluate_run, teacher_of
from cmcore.assemble.project import Run
from cmcore.assemble.training import SUMMARY
from cmcore.data.png import to_png
from cmcore.data.replacing import replacing
from cmcore.edge.inception import load_inception
from cmcore.edge.ray_run import execute, pick_device
from cmcore.edge.settings import ComputeConfig
from cmcore.evaluate.reference import load_reference
from cmcore.evaluate.settings import EvalConfig
from cmcore.train.checkpoint import write_atomic
from stages.common import Setup, load
from stages.files import write_arrays, write_json
from stages.progress import Emit, listener, reporter
from stages.ready import Find, Results, put
from stages.reference import INCEPTION
from stages.track import track


@dataclass(frozen=True)
class Inputs:
    """What an evaluation reads."""

    reference: Path  # folder
    results: Path  # folder of the run
    teacher: Path | None  # weight file of the run that it starts from


def job(compute: ComputeConfig, run: Run, workload: str, config: EvalConfig, inputs: Inputs, emit: Emit) -> Outcome:
    """Sample the run's model and measure the samples."""
    device = pick_device(compute)
    references = [load_reference(inputs.reference)]
    inception, why_not = load_inception(config.inception, device)
    if inception is not None:
        references.append(load_reference(inputs.reference / INCEPTION, inception, references[0].digest))
    return evaluate_run(
        run, workload, config, references, inputs.results, inputs.teacher,
        fid_absent=why_not, on_progress=reporter(emit), device=device,
    )  # fmt: skip


def reads(setup: Setup, name: str) -> list[Path]:
    """The files that decide the result, beside parameters and code."""
    folders, run = setup.folders, setup.project.run(name)
    return [folders.reference, folders.runs / name, folders.weights(run.init)]


def make(setup: Setup, name: str, find: Find) -> Results:
    """Evaluate the run in a folder of its own."""
    run, folders, compute, config = setup.project.run(name), setup.folders, setup.compute, setup.project.sections.eval
    teacher = teacher_of(run, folders.runs)
    inputs = Inputs(find(folders.reference), find(folders.runs / name), teacher and find(teacher))
    mark = json.loads((inputs.results / SUMMARY).read_text(encoding="utf-8"))["fingerprint"]
    out = folders.work / folders.workload / "evaluate" / name
    samples, grid, metrics = (f"{name}.{kind}" for kind in ("npz", "png", "json"))
    with setup.tracker(run, mark) as tracker:
        with listener(f"evaluate {name}", "img") as listen:
            outcome = execute(compute, job, compute, run, folders.workload, config, inputs, progress=listen)
        with replacing(out) as folder:
            write_arrays(folder / samples, outcome.samples)
            write_atomic(folder / grid, to_png(next(iter(outcome.samples.values())), columns=8))
            write_json(folder / metrics, outcome.metrics)
        track(outcome.metrics, tracker)
        tracker.artifact(out / grid, "grids")
        tracker.artifact(out / metrics, "records")
    return {
        folders.samples / samples: out / samples,
        folders.reports / "grids" / grid: out / grid,
        folders.reports / "metrics" / metrics: out / metrics,
    }


def main(name: str) -> None:
    """Evaluate the run and write what it declares."""
    put(make(load(), name, Path))
