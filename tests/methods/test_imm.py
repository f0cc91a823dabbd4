"""Inductive moment matching: times, weights and discrepancy in closed numbers, and what the loss leaves alone."""

import math

import pytest
import torch
from exact import SD, START, data, nets_of
from maps import exact_map
from tiny import make_method
from torch import Tensor

from cmcore.consistency.mmd import squared_mmd
from cmcore.diffusion.jumps import jump
from cmcore.diffusion.precond import Denoiser
from cmcore.diffusion.settings import DiffusionConfig
from cmcore.oracles import Gaussian
from cmcore.rng import Draws
from cmcore.tensors import expand_like

WIDE = DiffusionConfig(
    sigma_min=0.5 * 0.006 / 0.994, sigma_max=0.5 * 0.994 / 0.006
)  # the paper's t from 0.006 to 0.994


def level(t: float) -> Tensor:
    return torch.tensor([SD * t / (1 - t)], dtype=torch.float64)


def rows(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)[None, :, None]


def test_the_discrepancy_by_hand():
    one = torch.ones(1, dtype=torch.float64)
    assert float(squared_mmd(rows(0, 1), rows(0.5, 1.5), one)) == pytest.approx(0.346418, abs=1e-4)
    zeros, ones = torch.zeros(1, 4, 3, dtype=torch.float64), torch.ones(1, 4, 3, dtype=torch.float64)
    assert float(squared_mmd(zeros, ones, 2 * one)) == pytest.approx(1.369563, abs=1e-6)


def test_particles_that_coincide_have_finite_gradients():
    a = torch.zeros(1, 4, 3, requires_grad=True)
    squared_mmd(a, torch.zeros(1, 4, 3), torch.ones(1)).sum().backward()
    assert a.grad is not None
    assert a.grad.isfinite().all()


@pytest.mark.parametrize(("a", "expected"), [(1, (4.910326, 3.928055, 1.354707)), (2, (4.419293, 1.964028, 0.135471))])
def test_the_weight_by_hand(a: int, expected: tuple[float, ...]):
    method = make_method("imm", a=a, b=4.0)
    assert [float(method.weight(level(t))) for t in (0.1, 0.5, 0.9)] == pytest.approx(expected, abs=1e-6)


def test_times_are_shared_within_a_group_and_in_order():
    method, draws = make_method("imm", WIDE), Draws(1, 0, 4000)
    t, r, s = method.levels(draws)
    for v in (t, r, s):
        assert (v.reshape(-1, 4) == v.reshape(-1, 4)[:, :1]).all()
    assert (s <= r).all()
    assert (r < t).all()
    assert (WIDE.sigma_min <= s).all()
    assert (t <= WIDE.sigma_max).all()
    gap = (WIDE.sigma_max - WIDE.sigma_min) * 2**-15
    torch.testing.assert_close(r, torch.maximum(s, t - gap))
    time = t[::4] / (t[::4] + SD)
    assert abs(float(time.mean()) - 0.5) < 5 * math.sqrt(1 / 12 / 1000)
    parts = [method.levels(Draws(1, 0, 4000, slice(low, low + 1000)))[0] for low in range(0, 4000, 1000)]
    assert torch.equal(torch.cat(parts), t)


def test_the_map_is_that_of_the_paper():
    """f(x_t, t, s) with simple-EDM coefficients in linear time, for a network of any F."""
    F = torch.randn(1, 1, 2, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x = torch.ones_like(F)

    class Constant(torch.nn.Module):
        def forward(self, u: Tensor, *_: object) -> Tensor:
            return F

    denoiser = Denoiser(Constant(), sigma_data=SD, inputs=make_method("imm").traits.inputs)
    t, s = 0.8, 0.3
    total = (1 - t) ** 2 + t**2
    c_skip = ((1 - t) * (1 - s) + t * s) / total
    c_out = ((1 - s) * t - (1 - t) * s) * SD / total**0.5
    found = (1 - s) * jump(denoiser, x / (1 - t), level(t), level(s))
    assert c_skip == pytest.approx(0.558824, abs=1e-6)  # of the untrained network
    torch.testing.assert_close(found, c_skip * x + c_out * F)


def gradients(oracle: Gaussian, gain: float, M: int) -> Tensor:
    method, student, found = make_method("imm", M=M, g=2.0), exact_map(oracle), []
    student.net.gain.data.fill_(gain)
    for seed in range(30):
        draws = Draws(seed, 0, 4000)
        loss = method.loss(nets_of(student), data(oracle, draws), START, draws).loss.mean()
        found.append(torch.autograd.grad(loss, student.net.gain)[0])
    return torch.stack(found)


@pytest.mark.parametrize("std", [0.5, 1.1])
def test_different_particles_leave_the_exact_map_alone(std: float):
    """There the expected gradient is that of each particle and its own pair alone, as of M = 1, over M."""
    oracle = Gaussian(0.2, std)

    def others(gain: float) -> tuple[float, float]:
        group, alone = gradients(oracle, gain, 4), gradients(oracle, gain, 1) / 4
        error = (group.var() + alone.var()) / len(group)
        return float(group.mean() - alone.mean()), float(error**0.5)

    exact, error = others(1.0)
    wrong, wrong_error = others(0.8)
    assert abs(exact) < 4 * error
    assert abs(wrong) > 10 * wrong_error


def test_one_particle_is_a_consistency_loss_without_repulsion():
    oracle, draws = Gaussian(0.1, 0.7), Draws(3, 0, 8)
    method, student = make_method("imm", M=1, g=2.0), exact_map(oracle)
    student.net.gain.data.fill_(0.7)
    batch, z = data(oracle, draws), draws.normal((1, 2, 2), stream="noise")
    loss = method.loss(nets_of(student), batch, START, draws).loss
    t, r, s = method.levels(draws)
    y, target = (jump(student, batch.x + expand_like(v, z) * z, v, s) for v in (t, r))
    c_out = (1 - s / t) * student.scalings(t).c_out
    distance = (y - target).flatten(1).norm(dim=1).clamp(min=1e-4)
    self_similarity = torch.exp(-1e-4 / c_out / 4)
    expected = method.weight(t) * (2 * self_similarity - 2 * torch.exp(-distance / c_out / 4))
    torch.testing.assert_close(loss, expected)
