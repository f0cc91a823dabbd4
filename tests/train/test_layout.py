"""Memory format and compilation change how a network is computed, and nothing that is saved."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import DIFFUSION, batches, flat, make_method, make_state, make_train

from cmcore.diffusion.precond import Denoiser
from cmcore.methods.base import Batch, Method
from cmcore.nets import unet
from cmcore.rng import Draws
from cmcore.train import checkpoint
from cmcore.train.settings import TrainConfig
from cmcore.train.state import State, load_state_tensors, new_state, state_tensors
from cmcore.train.steps import steps


def images(draws: Draws) -> Batch:
    return Batch(0.5 * draws.normal((2, 8, 8), stream="data"), None)


def unet_state(method: Method, config: TrainConfig, dropout: float = 0.0) -> State:
    def denoiser(seed: int) -> Denoiser:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            small = unet.Config(
                model_channels=8, channel_mult=(1, 2), blocks=1, attention_resolutions=(4,), dropout=dropout
            )
            net = unet.build(small, channels=2, resolution=8, classes=0)
            with torch.no_grad():
                for parameter in net.parameters():
                    parameter += 0.1 * torch.randn_like(parameter)
        epsilon = DIFFUSION.sigma_min if method.traits.boundary else 0.0
        return Denoiser(net, sigma_data=DIFFUSION.sigma_data, epsilon=epsilon)

    return new_state(method, denoiser(0), config, teacher=denoiser(1))


def ends(name: str, make: Any, feed: Any, **options: Any) -> list[torch.Tensor]:
    method, results = make_method(name), []
    for changes in ({}, options):
        config = make_train(images=96, **changes)
        state = make(method, config)
        losses = [record.values["loss"] for record in steps(state, method, feed, config)]
        results.append(torch.cat([torch.stack(losses), flat(state.parameters)]))
    return results


@pytest.mark.parametrize("name", ["edm", "ect", "ct", "sct", "scd"])
def test_channels_last_is_the_same_training(name: str):
    plain, other = ends(name, unet_state, images, channels_last=True)
    torch.testing.assert_close(other, plain, rtol=1e-3, atol=2e-4)


def test_weights_lie_in_channels_last_and_are_saved_as_ever(tmp_path: Path):
    method, files = make_method("edm"), []
    for last in (False, True):
        config = make_train(images=32, channels_last=last)
        state = unet_state(method, config)
        (_,) = steps(state, method, images, config)
        kernel = next(p for p in state.parameters if p.ndim == 4 and p.shape[1] > 1 and p.shape[2] > 1)
        assert kernel.is_contiguous(memory_format=torch.channels_last) == last
        files.append(tmp_path / f"{last}.safetensors")
        checkpoint.save(files[-1], state_tensors(state), {"images": state.images})
    (plain, _), (other, meta) = map(checkpoint.load, files)
    assert {name: tensor.shape for name, tensor in plain.items()} == {n: tensor.shape for n, tensor in other.items()}
    config = make_train(images=64)
    for last in (False, True):  # a run may go on in the other format
        state = unet_state(method, make_train(images=64, channels_last=last))
        load_state_tensors(state, other, meta["images"])
        assert all(torch.equal(tensor, other[name]) for name, tensor in state_tensors(state).items())
        (_,) = steps(state, method, images, config)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["edm", "ect", "ct", "sct"])
def test_compiled_networks_train_alike_and_share_their_dropout_masks(name: str):
    def state(method: Method, config: TrainConfig) -> State:
        return make_state(method, config, noise=0.3, dropout=0.3)

    plain, compiled = ends(name, state, batches, compile=True)
    torch.testing.assert_close(compiled, plain, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", ["edm", "ect", "sct"])
def test_a_compiled_u_net_drops_what_the_plain_one_drops(name: str):
    """ECT's target repeats the student's masks, and sCT carries them in a pass with its tangent."""
    plain, compiled = ends(name, partial(unet_state, dropout=0.3), images, compile=True)
    torch.testing.assert_close(compiled, plain, rtol=1e-3, atol=2e-4)
    other, _ = ends(name, unet_state, images)
    assert not torch.allclose(other, plain, rtol=1e-2)


@pytest.mark.slow
def test_a_compiled_run_is_saved_under_the_same_names_and_goes_on_without(tmp_path: Path):
    method, names = make_method("ct"), []
    for on in (True, False):
        config = make_train(images=64, compile=on)
        state = make_state(method, config, noise=0.3)
        list(steps(state, method, batches, config))
        checkpoint.save(tmp_path / f"{on}", state_tensors(state), {})
        names.append((state_tensors(state).keys(), state.weights("ema").keys()))
    assert names[0] == names[1]
    later = make_state(method, make_train(images=96), noise=0.3)
    load_state_tensors(later, checkpoint.load(tmp_path / "True")[0], 64)
    assert [record.images for record in steps(later, method, batches, make_train(images=96))] == [96]
