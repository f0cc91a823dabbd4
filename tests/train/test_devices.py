"""A run on every device there is: what a GPU computes is, within rounding, what the plain loop of the CPU does."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from devices import CUDA
from faulty import Overflows, copied, gate
from tiny import DIFFUSION, METHODS, SHAPE, batches, make_denoiser, make_method, make_state, make_train
from torch import Tensor

from cmcore.data.feed import feed
from cmcore.data.images import Prepared
from cmcore.diffusion.grids import karras_grid, with_zero
from cmcore.rng import Draws, NoiseSource
from cmcore.sample.solvers import Heun
from cmcore.train import steps
from cmcore.train.gate import NonFiniteError
from cmcore.train.precision import choose_matrix_units
from cmcore.train.state import load_state_tensors, state_tensors

DEVICES = ["cpu", CUDA]


class Carried(Draws):
    """Numbers drawn on the CPU, the same for all devices, and carried to the one in question."""

    def _at_home(self) -> Draws:
        return Draws(self.seed, self.images, self.batch, self.rows)

    def normal(self, shape: Sequence[int] = (), *, stream: str, dtype: torch.dtype = torch.float32) -> Tensor:
        return self._at_home().normal(shape, stream=stream, dtype=dtype).to(self.device)

    def uniform(self, shape: Sequence[int] = (), *, stream: str, dtype: torch.dtype = torch.float64) -> Tensor:
        return self._at_home().uniform(shape, stream=stream, dtype=dtype).to(self.device)

    def batches(self, shape: Sequence[int], count: int, *, stream: str) -> Iterator[Tensor]:
        return (noise.to(self.device) for noise in self._at_home().batches(shape, count, stream=stream))


@pytest.fixture(autouse=True)
def carried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(steps, "Draws", Carried)


def losses(device: str, name: str, *, deferred: bool, **train: Any) -> Tensor:
    """The losses of a short run."""
    method, config = make_method(name), make_train(images=160, **train)
    choose_matrix_units(config.precision, config.jvp_precision)
    with gate(deferred):
        records = list(steps.steps(make_state(method, config, device=device, noise=0.3), method, batches, config))
    assert all(record.values["loss"].device.type == device for record in records)
    return torch.stack([record.values["loss"] for record in records]).cpu()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("optimiser", ["adam", "radam"])
def test_every_method_takes_the_steps_of_the_plain_loop(name: str, optimiser: str, device: str):
    settings = {"optimiser": optimiser, "clip_norm": 1.0}
    expected = losses("cpu", name, deferred=False, **settings)
    torch.testing.assert_close(
        losses(device, name, deferred=True, **settings, micro_batch=16), expected, rtol=2e-3, atol=1e-5
    )


@pytest.mark.parametrize("device", [CUDA])
@pytest.mark.parametrize("name", ["edm", "ect", "sct"])
@pytest.mark.parametrize(
    "settings",
    [
        {"precision": "tf32"}, {"precision": "bf16"}, {"precision": "fp16"}, {"channels_last": True}, {"compile": True},
        {"compile": True, "precision": "bf16", "micro_batch": 16},
        {"precision": "bf16", "jvp_precision": "tf32"}, {"precision": "bf16", "jvp_precision": "bf16"},
        {"compile": True, "precision": "bf16", "jvp_precision": "bf16"},
        {"compile": True, "cuda_graphs": True}, {"compile": True, "cuda_graphs": True, "micro_batch": 16},
    ],
    ids=lambda settings: "-".join(f"{key}={value}" for key, value in settings.items()),
)  # fmt: skip
def test_what_is_fast_on_a_gpu_is_near_what_is_exact(
    settings: dict[str, Any], name: str, device: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("cmcore.train.precision.INITIAL", 2.0**10)  # no step is skipped while the scale of fp16 falls
    expected = losses("cpu", name, deferred=False)
    torch.testing.assert_close(losses(device, name, deferred=True, **settings), expected, rtol=0.1, atol=0.02)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("name", ["edm", "ct", "sct"])
def test_a_continued_run_ends_in_the_bits_of_one_that_went_through(name: str, precision: str, device: str):
    method, config = make_method(name), make_train(precision=precision)
    whole, first, second = (
        make_state(method, config, device=device, noise=0.3, dropout=0.1, seed=seed) for seed in (0, 0, 1)
    )
    with gate(deferred=True):
        list(steps.steps(whole, method, batches, config))
        loop = steps.steps(first, method, batches, config)
        for _ in range(4):
            next(loop).settle()
        load_state_tensors(second, copied(first), first.images)
        list(steps.steps(second, method, batches, config))
    expected = state_tensors(whole)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in state_tensors(second).items())


@pytest.mark.parametrize("device", DEVICES)
def test_a_bad_step_ends_the_run_and_changes_nothing(device: str):
    method, config = Overflows(make_method("edm"), lambda k: k == 3), make_train(images=128)
    state = make_state(method, config, device=device, noise=0.3)
    with gate(deferred=True):
        loop = steps.steps(state, method, batches, config)
        for _ in range(3):
            next(loop)
        good = copied(state)
        with pytest.raises(NonFiniteError, match="at step 4 "):
            list(loop)
    assert all(torch.equal(tensor, good[name]) for name, tensor in state_tensors(state).items())


@pytest.mark.parametrize("device", [CUDA])
def test_samples_are_the_same_within_rounding(device: str):
    denoiser = make_denoiser(noise=0.3).eval()
    sampler = Heun(with_zero(karras_grid(5, DIFFUSION.sigma_min, DIFFUSION.sigma_max, DIFFUSION.rho)))
    expected = sampler(denoiser, SHAPE, NoiseSource(1, range(8)))
    got = sampler(denoiser.to(device), SHAPE, NoiseSource(1, range(8), device)).cpu()
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("room", [0.0, 1.0], ids=["sent", "resident"])
def test_batches_on_a_device_are_those_of_the_data_set(room: float, device: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("cmcore.data.feed.RESIDENT", room)
    rng = np.random.default_rng(0)
    data = Prepared(rng.integers(0, 256, (9, 1, 4, 4), dtype=np.uint8), rng.integers(0, 3, 9), {})
    rows = np.array([7, 0, 3])
    images, labels = feed(data, device)(rows)
    assert {images.device.type, labels.device.type} == {device}
    assert np.array_equal(images.cpu(), data.images[rows])
    assert np.array_equal(labels.cpu(), data.labels[rows])
