"""What tests of exports and of their import share: runs, networks, noise, and diffusers where it is installed."""

import contextlib
import importlib.util
import warnings
from typing import Any

import pytest
import torch
from stored import PARAMS

from cmcore.closure import ROOT
from cmcore.torchvision_ops import import_torchvision

PIPELINE = ROOT / "cmcore/edge/diffusers_pipeline.py"
RUNS = {
    **PARAMS["runs"],
    "ct": {
        "method": "ct",
        "init": "random",
        "teacher": "none",
        "sample": {"two_step": 1.5},
        "options": {"distance": "l2"},
    },
    "imm": {"method": "imm", "init": "edm", "teacher": "none"},
    "meanflow": {"method": "meanflow", "init": "random", "teacher": "none"},
}
EDM2 = {
    "kind": "edm2", "model_channels": 8, "channel_mult": [1, 2], "blocks": 1, "attention_resolutions": [4],
    "head_channels": 4,
}  # fmt: skip
ADM = {
    "kind": "adm", "c_noise": "log1000", "model_channels": 8, "channel_mult": [1, 2], "blocks": 1,
    "attention_resolutions": [4], "head_channels": 4, "group_channels": 64,
}  # fmt: skip


def noise(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def diffusers_library() -> Any:
    """The package, which imports torchvision where it is installed."""
    if importlib.util.find_spec("diffusers") is None:
        pytest.skip("diffusers is not installed (the extra 'latents')")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of diffusers about itself
        with contextlib.suppress(ImportError):
            import_torchvision()
        return importlib.import_module("diffusers")
