"""A parameter file with one tiny run of every method, and their inputs."""

from pathlib import Path
from typing import Any

from registry import entry
from tiny import METHODS, weightless
from tiny_runs import PARAMS

from cmcore.assemble.models import save_empty
from cmcore.assemble.project import Project, parse_project
from cmcore.assemble.training import Inputs, train_run
from cmcore.data.sources.prepare import prepare
from cmcore.tracking.base import Null


def run_of(name: str) -> dict[str, Any]:
    """The entry of `runs` for a method; one that needs no weights that do not come with the project."""
    known = entry(name)
    teacher = "edm" if known.teacher else "none"
    return {"method": name, "init": known.start, "teacher": teacher, "options": weightless(name)}


def every_run(**train: Any) -> Project:
    """All methods, with dropout, flips, two averages and a checkpoint at every logged line."""
    settings = {
        "images": 1024, "batch": 64, "micro_batch": 40, "lr": 1e-3, "log_images": 128, "checkpoint_seconds": 0.0,
        "snapshots": 3, "flip": True, "ema": {"ema": {"half_life": 512.0}, "power": {"power_std": 0.1}},
    } | train  # fmt: skip
    net = PARAMS["net"] | {"dropout": 0.2}
    return parse_project(PARAMS | {"net": net, "train": settings, "runs": {name: run_of(name) for name in METHODS}})


def make_inputs(folder: Path) -> dict[str, Inputs]:
    """Prepared digits, the empty weight file and a teacher: the inputs of every run by name."""
    project = every_run()
    prepare(project.sections.data, folder / "data")
    empty = folder / "random.safetensors"
    save_empty(empty, "random")
    random = Inputs(folder / "data", empty, empty)
    final = train_run(project.run("edm"), random, folder / "edm", tracker=Null(), on_progress=lambda *_: None)
    files = {"random": empty, "none": empty, "edm": final / "weights.safetensors"}
    runs = {name: project.run(name) for name in METHODS}
    return {name: Inputs(folder / "data", files[run.init], files[run.teacher]) for name, run in runs.items()}
