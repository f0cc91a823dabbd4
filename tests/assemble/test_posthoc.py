"""Reconstruction from the snapshots of a real run, against the average that the run tracked itself."""

import copy
from pathlib import Path

import numpy as np
import pytest
import torch

from cmcore.assemble.models import load_model, save_empty
from cmcore.assemble.posthoc import reconstruct
from cmcore.assemble.project import parse_project
from cmcore.assemble.training import SNAPSHOTS, WEIGHTS, Inputs, train_run
from cmcore.data.settings import DataConfig
from cmcore.data.sources.prepare import prepare
from cmcore.tracking.base import Null
from cmcore.train.checkpoint import CheckpointError

PARAMS = {
    "workload": "tiny",
    "data": {"source": "array", "path": "images.npy", "resolution": 4, "channels": 1},
    "diffusion": {"sigma_max": 10.0},
    "net": {"kind": "mlp", "hidden": 16, "blocks": 1},
    "train": {
        "images": 3200,
        "batch": 16,
        "lr": 3e-3,
        "ema": {
            "narrow": {"power_std": 0.05},
            "wide": {"power_std": 0.1},
            "between": {"half_life": 200.0, "ramp": 0.1},
            "widest": {"power_std": 0.15},
        },
        "eval_ema": "between",
        "snapshots": 8,
    },
    "runs": {"edm": {"method": "edm", "init": "random", "teacher": "none"}},
}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory) -> Inputs:
    root = tmp_path_factory.mktemp("posthoc")
    images = np.random.default_rng(0).integers(0, 256, (64, 1, 4, 4), dtype=np.uint8)
    np.save(root / "images.npy", images)
    prepare(DataConfig(source="array", path=str(root / "images.npy"), resolution=4, channels=1), root / "data")
    save_empty(root / "random.safetensors", "random")
    return Inputs(root / "data", root / "random.safetensors", root / "random.safetensors")


def results(inputs: Inputs, **train) -> Path:
    params = copy.deepcopy(PARAMS)
    params["train"] |= train
    run = parse_project(params).run("edm")
    folder = inputs.data.parent / f"run{abs(hash(str(train)))}"
    return train_run(run, inputs, folder, tracker=Null(), on_progress=lambda *_: None)


@pytest.fixture(scope="module")
def trained(inputs) -> Path:
    return results(inputs)


def distance(a, b) -> float:
    pairs = zip(a.denoiser.net.parameters(), b.denoiser.net.parameters(), strict=True)
    return float(torch.stack([(x - y).detach().square().sum() for x, y in pairs]).sum().sqrt())


def test_a_stored_profile_comes_back(trained):
    assert distance(reconstruct(trained, 0.1), load_model(trained / WEIGHTS, "wide")) < 1e-4
    early = reconstruct(trained, 0.05, images=1600)
    assert distance(early, load_model(trained / SNAPSHOTS / "000001600.safetensors", "narrow")) < 1e-4
    assert early.meta["images"] == 1600


def test_averages_that_were_not_used_are_reconstructed(inputs):
    """Snapshots hold two power profiles only, and the final weights tell what a third and a half-life really gave."""
    ema = PARAMS["train"]["ema"]
    tracked = results(inputs)
    two = {name: ema[name] for name in ("narrow", "wide")}
    folder = results(inputs, ema=two, eval_ema="wide")
    # The averages do not feed back, so both runs have the same weights at every moment.
    assert distance(load_model(folder / WEIGHTS, "raw"), load_model(tracked / WEIGHTS, "raw")) == 0
    raw = load_model(tracked / WEIGHTS, "raw")
    for name, target in (("widest", {"std": 0.15}), ("between", {"half_life": 200.0, "ramp": 0.1})):
        truth = load_model(tracked / WEIGHTS, name)
        made = reconstruct(folder, **target)
        assert distance(made, truth) < 0.03 * distance(raw, truth)
        assert made.meta["posthoc"]["misfit"] < 0.1


def test_what_cannot_be_reconstructed_is_said(inputs, trained):
    with pytest.raises(ValueError, match=r"expected a positive std or a positive half_life, got 0\.1 and 5"):
        reconstruct(trained, 0.1, half_life=5)
    with pytest.raises(ValueError, match="up to the last stored profile, 3200"):
        reconstruct(trained, 0.1, images=5000)
    plain = results(inputs, ema={"between": {"half_life": 200.0}}, images=160)
    with pytest.raises(CheckpointError, match=r"power_std in at least one entry of train\.ema"):
        reconstruct(plain, 0.1)
