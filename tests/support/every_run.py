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
    teacher = known.start if known.teacher else "none"
    options = weightless(name) | known.coarse
    return {"method": name, "init": known.start, "teacher": teacher, "options": options, "train": known.train}


def every_run(**train: Any) -> Project:
    """All methods, with dropout, flips, two averages and a checkpoint at every logged line."""
    settings = {
        "images": 1024, "batch": 64, "micro_batch": 40, "lr": 1e-3, "log_images": 128, "checkpoint_seconds": 0.0,
        "snapshots": 3, "flip": True, "ema": {"ema": {"half_life": 512.0}, "power": {"power_std": 0.1}},
    } | train  # fmt: skip
    net = PARAMS["net"] | {"dropout": 0.2}
    return parse_project(PARAMS | {"net": net, "train": settings, "runs": {name: run_of(name) for name in METHODS}})


def make_inputs(folder: Path) -> dict[str, Inputs]:
    """Prepared digits, the empty weight file and the runs that others start from: the inputs of every run by name."""
    project = every_run()
    prepare(project.sections.data, folder / "data")
    empty = folder / "random.safetensors"
    save_empty(empty, "random")
    files = {"random": empty, "none": empty}

    def inputs(name: str) -> Inputs:
        run = project.run(name)
        for parent in run.parents:
            if parent not in files:
                own, quiet = project.run(parent), {"tracker": Null(), "on_progress": lambda *_: None}
                files[parent] = (
                    train_run(own, inputs(parent), folder / "starts" / parent, **quiet) / "weights.safetensors"
                )
        return Inputs(folder / "data", files[run.init], files[run.teacher])

    return {name: inputs(name) for name in METHODS}
