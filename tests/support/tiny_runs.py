"""The smallest real training run, for tests of how runs are executed."""

from pathlib import Path
from typing import Any

from cmcore.assemble.models import save_empty
from cmcore.assemble.project import Project, parse_project
from cmcore.assemble.training import Inputs, fingerprint, work_folder
from cmcore.data.sources.prepare import prepare

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
