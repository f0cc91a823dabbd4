"""A project with weights that nobody trained, where a trained run has them."""

from pathlib import Path
from typing import Any

import torch
import yaml

from cmcore.assemble.models import ModelShape, build_denoiser, save_model
from cmcore.assemble.project import Project, parse_project
from cmcore.assemble.training import WEIGHTS
from cmcore.diffusion.words import Words

PARAMS: dict[str, Any] = {
    "workload": "tiny",
    "data": {"source": "digits"},
    "diffusion": {"sigma_max": 20.0},
    "net": {"kind": "mlp", "hidden": 16, "blocks": 1, "residual_gain": 1.0},
    "train": {"images": 64, "batch": 64},
    "runs": {
        "edm": {"method": "edm", "init": "random", "teacher": "none"},
        "ect": {"method": "ect", "init": "edm", "teacher": "none", "sample": {"two_step": 1.5}},
    },
    "eval": {"teacher_steps": 3},
}


def store(
    folder: Path, name: str, classes: int = 0, *, seed: int = 0, shape: ModelShape | None = None, **changes: object
) -> Project:
    """The parameter file, and weights of a run that nobody trained, where a trained run has them."""
    folder.mkdir(exist_ok=True)
    params = PARAMS | changes
    (folder / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))
    project = parse_project(params)
    run, shape = project.run(name), shape or ModelShape(1, 8, classes)
    denoiser = build_denoiser(run.net, shape, run.diffusion, boundary=run.objective.traits.boundary)
    path = folder / "outputs" / project.workload / "runs" / name / WEIGHTS
    path.parent.mkdir(parents=True, exist_ok=True)
    # A new network's last layer is zero: with these weights every image depends on all that the network sees.
    noise = torch.Generator().manual_seed(seed)
    weights = {key: v + 0.3 * torch.randn(v.shape, generator=noise) for key, v in denoiser.net.state_dict().items()}
    save_model(path, {"ema": weights, "raw": {key: v / 2 for key, v in weights.items()}}, run, shape, {})
    return project


WORDS = Words(("a", "blue", "circle", "red", "square"), 3)


def store_reader(folder: Path, name: str = "edm") -> Project:
    """The same of a run whose network reads captions of `WORDS`, without data."""
    net = {
        "kind": "unet",
        "model_channels": 8,
        "channel_mult": [1],
        "blocks": 1,
        "attention_resolutions": [4],
        "patch": 4,
    }
    data = {"source": "shapes", "count": 8, "resolution": 16, "channels": 3}
    edm = {**PARAMS["runs"]["edm"], "options": {"label_dropout": 0.1}, "sample": {"guidance": 2.0}}
    return store(
        folder, name, shape=ModelShape(3, 16, 0, WORDS), net={**net, "patch": 4, "dropout": 0.0}, data=data,
        conditional="words", runs={**PARAMS["runs"], "edm": edm},
    )  # fmt: skip
