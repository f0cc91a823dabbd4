"""The training loop: learning rates, accumulation, workers, and the stop before a bad step."""

import re
from dataclasses import replace
from typing import Any

import pytest
import torch
from registry import entry
from tiny import METHODS, batches, flat, make_method, make_state, make_train
from torch import Tensor

from cmcore.config import ConfigError, read
from cmcore.methods.base import Batch, LossOut, Method
from cmcore.rng import Draws
from cmcore.train.ema import decay
from cmcore.train.gate import NonFiniteError
from cmcore.train.optim import learning_rate
from cmcore.train.settings import TrainConfig
from cmcore.train.state import load_state_tensors, state_tensors
from cmcore.train.steps import row_slices, steps
from cmcore.train.workers import Worker


def rates(images: list[int], **options: Any) -> list[float]:
    config = make_train(**{"images": 10_000, "batch": 100, "lr": 1.0, **options})
    return [learning_rate(config, at) for at in images]


def test_learning_rates():
    assert rates([0, 5000, 9900]) == [1, 1, 1]
    assert rates([0, 100, 900, 5000], lr_ramp_images=1000) == pytest.approx([0, 0.1, 0.9, 1])
    inverse = rates([0, 1000, 4000, 9000], lr_decay="inverse_sqrt", lr_ref_images=1000)
    assert inverse == pytest.approx([1, 1, 1 / 2, 1 / 3])  # arXiv 2312.02696, Eq. 67
    assert rates([0, 5000, 9900, 10_000], lr_decay="linear") == pytest.approx([1, 0.5, 0.01, 0])
    assert rates([0, 6000, 8000], lr_decay="linear", lr_ref_images=6000) == pytest.approx([1, 1, 0.5])


def test_the_optimiser_gets_the_scheduled_rate():
    method, config = make_method("edm"), make_train(lr_ramp_images=320, lr=0.1)
    seen = [record.values["lr"] for record in steps(make_state(method, config), method, batches, config)]
    assert seen == pytest.approx([0.01 * k for k in range(10)])  # of the images before the step, as in EDM's code


@pytest.mark.parametrize(("batch", "micro"), [(32, 0), (32, 8), (32, 5), (7, 3), (1, 0), (24, 24)])
@pytest.mark.parametrize("world", [1, 2, 4])
def test_slices_of_all_workers_cover_the_batch_once(batch: int, micro: int, world: int):
    if batch % world:
        with pytest.raises(ValueError, match=rf"compute\.workers = {world}, got {batch}"):
            row_slices(batch, micro, Worker(0, world))
        return
    slices = [s for rank in range(world) for s in row_slices(batch, micro, Worker(rank, world))]
    assert [row for s in slices for row in range(batch)[s]] == list(range(batch))
    assert all(s.stop - s.start <= (micro or batch) for s in slices)


@pytest.mark.parametrize(
    ("micro", "limit", "group", "expected"),
    [
        (0, 0, 1, [32]),
        (0, 8, 1, [8] * 4),
        (4, 8, 1, [4] * 8),
        (16, 8, 1, [8] * 4),
        (0, 9, 4, [8] * 4),
        (0, 3, 4, [4] * 8),
    ],
)
def test_the_limit_of_a_worker_is_that_of_its_slices(micro, limit, group, expected):
    """In whole groups, and together with the run's own micro-batch."""
    assert [s.stop - s.start for s in row_slices(32, micro, Worker(rows=limit), group)] == expected


def one_step(name: str, **options: Any) -> tuple[Tensor, Tensor, dict[str, Any]]:
    method, config = make_method(name, **entry(name).coarse), make_train(images=32, **options)
    state = make_state(method, config, noise=0.3)
    (record,) = steps(state, method, batches, config)
    gradient = flat(p.grad for player in state.players.values() for p in player.parameters if p.grad is not None)
    return record.values["loss"], gradient, record.values


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("micro", [8, 5])
def test_accumulated_gradients_are_those_of_the_whole_batch(name: str, micro: int):
    loss, gradient, scalars = one_step(name)
    micro += -micro % make_method(name).traits.group
    parts_loss, parts_gradient, parts_scalars = one_step(name, micro_batch=micro)
    torch.testing.assert_close(parts_loss, loss, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(parts_gradient, gradient, rtol=1e-4, atol=1e-5 * float(gradient.abs().max()))
    assert parts_scalars.keys() == scalars.keys()
    for key, value in scalars.items():
        assert float(parts_scalars[key]) == pytest.approx(float(value), rel=1e-4, abs=1e-6)


def test_gradients_of_cuda_graphs_add_up_in_memory_of_their_own(monkeypatch: pytest.MonkeyPatch):
    """What a graph returns is overwritten by its next run, which the next part of the batch is."""
    monkeypatch.setattr("cmcore.train.state.arrange", lambda net, config, worker: None)  # graphs are CUDA's
    method, ends = make_method("edm"), []
    for options in ({}, {"compile": True, "cuda_graphs": True}):
        config, places = make_train(micro_batch=8, **options), set()
        state = make_state(method, config, noise=0.3)

        def images(draws: Draws, state=state, places=places) -> Batch:
            places.add(tuple(map(id, (parameter.grad for parameter in state.parameters))))
            return batches(draws)

        list(steps(state, method, images, config))
        assert (len(places) == 1) == bool(options)
        assert all(parameter.grad is not None for parameter in state.parameters)
        ends.append(flat(state.parameters))
    assert torch.equal(*ends)


@pytest.mark.parametrize("name", ["edm", "ict"])
def test_two_workers_do_the_step_of_one(name: str):
    loss, gradient, _ = one_step(name)
    method, config = make_method(name), make_train(images=32)
    shares = []
    for rank in range(2):
        state = make_state(method, config, noise=0.3)
        nothing = Worker(rank, 2, begin=lambda _: lambda: None)  # the sums are taken below
        (record,) = steps(state, method, batches, config, nothing)
        shares.append((record.values["loss"], flat(parameter.grad for parameter in state.parameters)))
    losses, gradients = zip(*shares, strict=True)
    torch.testing.assert_close(sum(losses), loss, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(sum(gradients), gradient, rtol=1e-4, atol=1e-5 * float(gradient.abs().max()))


def test_clipping_bounds_the_norm_of_all_gradients_and_reports_it_unclipped():
    method = make_method("edm")
    plain, clipped = (make_train(images=32, clip_norm=c) for c in (0.0, 1e-3))
    norms = []
    for config in (plain, clipped):
        state = make_state(method, config, noise=0.3)
        (record,) = steps(state, method, batches, config)
        norms.append((float(record.values["grad_norm"]), float(flat(p.grad for p in state.parameters).norm())))
    assert norms[0][0] == pytest.approx(norms[0][1])
    assert norms[1] == (pytest.approx(norms[0][0]), pytest.approx(1e-3, rel=1e-3))


@pytest.mark.parametrize("kind", ["loss", "gradient"])
def test_a_non_finite_step_is_not_taken(kind: str):
    inner, config = make_method("edm"), make_train()
    state = make_state(inner, config)

    class Breaks(Method):
        def loss(self, nets: Any, batch: Batch, progress: Any, draws: Draws) -> LossOut:
            out = inner.loss(nets, batch, progress, draws)
            if progress.images < 3 * config.batch:
                return out
            # sqrt at 0 has an infinite slope and a finite value.
            zero = (out.loss - out.loss.detach()).clamp(min=0)
            return LossOut(out.loss * float("nan") if kind == "loss" else out.loss.detach() + zero.sqrt(), {})

    loop = steps(state, Breaks(), batches, config)
    assert [next(loop).images for _ in range(3)] == [32, 64, 96]
    good = {name: tensor.clone() for name, tensor in state_tensors(state).items()}
    words = "at step 4 (96 images seen); the step was not taken"
    with pytest.raises(NonFiniteError, match="^Breaks: loss .*" + re.escape(words)):
        next(loop)
    assert all(torch.equal(tensor, good[name]) for name, tensor in state_tensors(state).items())
    assert state.images == 96


def test_ct_target_follows_mu_of_the_step_just_taken():
    method, config = make_method("ct", s1=10), make_train(lr=1e-2)
    state = make_state(method, config, noise=0.3)
    expected = flat(state.nets.target.parameters())
    for record in steps(state, method, batches, config):
        mu = float(record.values["mu"])
        expected = mu * expected + (1 - mu) * flat(state.parameters)
        torch.testing.assert_close(flat(state.nets.target.parameters()), expected, rtol=1e-5, atol=1e-6)
    assert mu > 0.9


def test_the_state_goes_to_tensors_and_back_to_the_bit():
    method, config = make_method("sct"), make_train(optimiser="adam")
    state, other = (make_state(method, config, seed=seed) for seed in (0, 1))
    for _ in steps(state, method, batches, replace(config, images=96)):
        pass
    saved = {name: tensor.clone() for name, tensor in state_tensors(state).items()}
    load_state_tensors(other, saved, state.images)
    for run in (state, other):
        list(steps(run, method, batches, config))
    ours, theirs = state_tensors(state), state_tensors(other)
    assert ours.keys() == theirs.keys()
    assert any(name.startswith("nets/adaptive_weight/") for name in ours)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    with pytest.raises(RuntimeError):
        load_state_tensors(make_state(method, config, hidden=8), saved, 0)


def test_bf16_keeps_weights_and_averages_in_fp32():
    method, config = make_method("edm"), make_train(images=64, precision="bf16")
    state = make_state(method, config)
    records = list(steps(state, method, batches, config))
    assert all(
        tensor.dtype == torch.float32 for tensor in [*state.parameters, *state.ema["ema"], records[-1].values["loss"]]
    )


@pytest.mark.parametrize(
    ("data", "field"),
    [
        ({"images": 10, "batch": 20}, "images"),
        ({"images": 10, "batch": 0}, "batch"),
        ({"images": 10, "batch": 5, "micro_batch": 6}, "micro_batch"),
        ({"images": 10, "batch": 5, "lr": 0}, "lr"),
        ({"images": 10, "batch": 5, "betas": [0.9, 1]}, "betas"),
        ({"images": 10, "batch": 5, "lr_decay": "inverse_sqrt"}, "lr_ref_images"),
        ({"images": 10, "batch": 5, "eps": 0}, "eps"),
        ({"images": 10, "batch": 5, "lr_decay": "linear", "lr_ref_images": 10}, "lr_ref_images"),
        ({"images": 9, "batch": 5, "snapshots": -1}, "snapshots"),
        ({"images": 10, "batch": 5, "log_images": 0}, "log_images"),
        ({"images": 10, "batch": 5, "precision": "fp8"}, "precision"),
        ({"images": 10, "batch": 5, "cuda_graphs": True}, "cuda_graphs"),
        ({"images": 10, "batch": 5, "jvp_precision": "tf32"}, "jvp_precision"),
        ({"images": 10, "batch": 5, "clip_norm": -1}, "clip_norm"),
        ({"batch": 5}, "images"),
    ],
)
def test_impossible_settings_are_refused_by_name(data: dict[str, Any], field: str):
    with pytest.raises(ConfigError) as caught:
        read(TrainConfig, data)
    assert caught.value.path == field


def test_images_are_rounded_up_to_whole_batches():
    config = make_train(images=100, batch=32)
    assert (config.steps, config.total) == (4, 128)
    method = make_method("edm")
    assert [r.images for r in steps(make_state(method, config), method, batches, config)] == [32, 64, 96, 128]
    assert decay(config.ema["ema"], 128, 32) < 1
