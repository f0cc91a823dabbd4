"""The smallest real training run, for tests of how runs are executed."""

from pathlib import Path
from typing import Any

from torch import Tensor

from cmcore.assemble.imports import import_run
from cmcore.assemble.models import load_model, save_empty
from cmcore.assemble.project import Project, parse_project
from cmcore.assemble.training import WEIGHTS, Inputs, fingerprint, train_run, work_folder
from cmcore.data.sources.prepare import prepare
from cmcore.tracking.base import Null

SILENT: dict[str, Any] = {"tracker": Null(), "on_progress": lambda *_: None}

PARAMS: dict[str, Any] = {
    "workload": "tiny",
    "data": {"source": "digits"},
    "diffusion": {"sigma_max": 20.0},
    "net": {"kind": "mlp", "hidden": 16, "blocks": 1, "c_noise": "log"},
    "train": {
        "images": 4096, "batch": 64, "lr": 1e-3, "log_images": 512, "checkpoint_seconds": 0.0, "snapshots": 2,
        "ema": {"ema": {"half_life": 512.0}},
    },
    "runs": {
        "edm": {"method": "edm", "init": "random", "teacher": "none"},
        "ect": {"method": "ect", "init": "edm", "teacher": "none"},
        "ict": {"method": "ict", "init": "random", "teacher": "none", "options": {"s0": 4, "s1": 8}},
    },
}  # fmt: skip


def tiny_project(**train: Any) -> Project:
    return parse_project(PARAMS | {"train": PARAMS["train"] | train})


def tiny_inputs(folder: Path) -> Inputs:
    """The prepared digits and the empty weight file."""
    if not (folder / "random.safetensors").exists():
        prepare(parse_project(PARAMS).sections.data, folder / "data")
        save_empty(folder / "random.safetensors", "random")
    return Inputs(folder / "data", folder / "random.safetensors", folder / "random.safetensors")


def tiny_folder(project: Project, run: str, inputs: Inputs, root: Path) -> Path:
    return work_folder(root, project.workload, run, fingerprint(project.run(run), inputs))


class Made:
    """Runs of a project with their results, each made when it is first asked for."""

    def __init__(self, root: Path, project: Project) -> None:
        self.root, self.start, self.project = root, tiny_inputs(root), project

    def inputs(self, name: str, project: Project | None = None) -> Inputs:
        run = (project or self.project).run(name)
        init, teacher = (
            self.start.init if one in ("random", "none") else self.final(one) / WEIGHTS
            for one in (run.init, run.teacher)
        )
        return Inputs(self.start.data, init, teacher)

    def final(self, name: str) -> Path:
        run = self.project.run(name)
        make = train_run if run.weights is None else import_run
        return make(run, self.inputs(name), self.root / name, **SILENT)

    def weights(self, name: str, profile: str = "") -> dict[str, Tensor]:
        return dict(load_model(self.final(name) / WEIGHTS, profile).denoiser.net.state_dict())
