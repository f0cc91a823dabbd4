"""What the data section and train.augment ask of the rest of the parameter file, and what a training step gets."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from cmcore.assemble.project import load_project, parse_project, require_decoder
from cmcore.assemble.training import image_batches
from cmcore.config import ConfigError, load_yaml
from cmcore.data.augment import draw
from cmcore.data.images import ImageData
from cmcore.data.settings import AUGMENT_DIM, DataConfig
from cmcore.data.sources.prepare import prepare
from cmcore.diffusion.precond import Condition
from cmcore.rng import Draws

WORKLOAD = Path(__file__).parents[2] / "workloads" / "digits.yaml"


def parameters(**sections) -> dict:
    data = load_yaml(WORKLOAD)
    data.pop("tune", None)
    return {**data, **sections}


def latents(**train) -> dict:
    data = parameters(data={"source": "latents", "path": "p", "resolution": 8, "channels": 4})
    return data | {"train": {**data["train"], **train}}


def test_augmentation_asks_for_a_network_that_is_told():
    data = parameters()
    data["runs"]["edm"]["train"]["augment"] = 0.12
    with pytest.raises(ConfigError) as error:
        parse_project(data)
    assert error.value.path == "runs.edm.train.augment"
    assert "runs.edm.net.augment_dim to be 9, got 0" in str(error.value)


def test_a_network_that_knows_the_data_is_told_the_same_as_the_preconditioning():
    data = parameters(net={"kind": "gaussian_unet", "sigma_data": 0.3, "blocks": 1})
    with pytest.raises(
        ConfigError, match=r"runs\.edm\.net\.sigma_data: expected diffusion\.sigma_data = 0\.5, got 0\.3"
    ):
        parse_project(data)
    data["diffusion"]["sigma_data"] = 0.3
    assert parse_project(data).run("edm").net.config.sigma_data == 0.3


@pytest.mark.parametrize(("train", "key"), [({"augment": 1.2}, "augment"), ({"augment": 0.1, "flip": True}, "flip")])
def test_impossible_augmentations_name_their_key(train, key):
    data = parameters()
    with pytest.raises(ConfigError, match=rf"^train\.{key}: "):
        parse_project(data | {"train": {**data["train"], **train}})


@pytest.mark.parametrize("train", [{"flip": True}, {"augment": 0.1}])
def test_latents_are_not_distorted(train):
    with pytest.raises(ConfigError, match=r"runs\.edm\.train\.(flip|augment)"):
        parse_project(latents(**train))


def test_latents_can_be_trained_on_but_are_not_measured_without_a_decoder():
    data = latents()
    with pytest.raises(ConfigError, match=r"^eval\.decoder\.path: latents can be trained on.*got ''"):
        require_decoder(parse_project(data))
    data["eval"]["decoder"] = {"path": "vae"}
    require_decoder(parse_project(data))
    require_decoder(load_project(WORKLOAD))


def test_only_latents_are_decoded_and_they_are_not_searched():
    data = parameters()
    with pytest.raises(ConfigError, match=r"^eval\.decoder\.path: expected nothing, as only latents.*got 'vae'"):
        parse_project(data | {"eval": {**data["eval"], "decoder": {"path": "vae"}}})
    search = {"base": "ect", "init": "edm", "space": {"options": {"q": {"uniform": [2.0, 8.0]}}}}
    with pytest.raises(ConfigError, match=r"^tune\.schedule: expected no search for data\.source = latents"):
        parse_project(latents() | {"tune": {"schedule": search}})


def test_a_step_gets_distorted_images_and_what_to_tell_the_network(tmp_path):
    prepare(DataConfig(), tmp_path)
    data, run = ImageData.open(tmp_path), load_project(WORKLOAD).run("edm")
    plain = image_batches(data, run, "cpu")
    augmented = image_batches(data, replace(run, train=replace(run.train, augment=0.5)), "cpu")
    draws = Draws(1, 512, 32)
    before, after = plain(draws), augmented(draws)
    assert isinstance(after.labels, Condition)
    assert torch.equal(after.labels.augment, draw(draws, 0.5).labels)
    assert after.labels.augment.shape == (32, AUGMENT_DIM)
    changed = (after.x != before.x).flatten(1).any(1)
    assert not changed[~after.labels.augment.any(1)].any()
    assert changed.float().mean() > 0.5
    part = augmented(Draws(1, 512, 32, slice(8, 16)))
    np.testing.assert_allclose(part.x, after.x[8:16], atol=1e-6)
    assert torch.equal(part.labels.augment, after.labels.augment[8:16])
