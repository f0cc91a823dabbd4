"""Rectified flow: the velocity by the denoiser, the exact solution, and Euler's steps on the linear path."""

import math
from itertools import pairwise

import pytest
import torch
from exact import SD, START, TwoNumbers, data, exact, gain_gradient, nets_of
from tiny import make_method
from torch import Tensor

from cmcore.diffusion.grids import linear_grid
from cmcore.diffusion.path import Linear
from cmcore.diffusion.precond import Denoiser
from cmcore.diffusion.settings import DiffusionConfig
from cmcore.methods.rf import RF
from cmcore.oracles import Gaussian, as_denoiser
from cmcore.rng import Draws, NoiseSource
from cmcore.sample.presets import solver
from cmcore.tensors import expand_like, mean_per_sample

# For N(0, 1/4) at x_t = 1: t, the velocity and the loss of the exact one, s^2/V(t).
VECTORS = [(0.9, 1.076923, 0.307692), (0.7, 1.219512, 0.487805), (0.5, 1.2, 0.8), (0.3, 0.588235, 1.176471)]


def f64(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


@pytest.mark.parametrize("times", ["uniform", "logit_normal"])
def test_the_loss_is_that_of_the_velocity_on_the_linear_path(times: str):
    student, draws = Denoiser(TwoNumbers(), sigma_data=SD), Draws(2, 0, 64)
    batch, method = data(Gaussian(0.0, SD), draws), make_method("rf", times=times)
    loss = method.loss(nets_of(student), batch, START, draws).loss.detach()
    assert isinstance(method, RF)
    t, z = method.times(draws), draws.normal((1, 2, 2), stream="noise")
    path = Linear()
    x_t = path.at(t).mix(batch.x, z)
    with torch.no_grad():
        v = (x_t - student(x_t / expand_like(1 - t, z), path.level(t))) / expand_like(t, z)
    expected = mean_per_sample((v - path.at(t).velocity(batch.x, z)) ** 2)
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=1e-6)  # z is float32


@pytest.mark.parametrize(("t", "v", "floor"), VECTORS)
def test_the_exact_velocity_and_its_loss(t: float, v: float, floor: float, monkeypatch: pytest.MonkeyPatch):
    oracle, x_t = Gaussian(0.0, 0.5), torch.ones(1, 1, 1, 1, dtype=torch.float64)
    D = oracle.denoise(x_t / (1 - t), f64(t / (1 - t)))
    assert ((x_t - D) / t).item() == pytest.approx(v, abs=1e-6)
    draws = Draws(0, 0, 40_000)
    monkeypatch.setattr(RF, "times", lambda _, draws: torch.full((draws.batch,), t, dtype=torch.float64))
    loss = make_method("rf").loss(nets_of(exact(oracle)), data(oracle, draws), START, draws).loss.detach()
    assert abs(float(loss.mean()) - floor) < 5 * float(loss.std()) / len(loss) ** 0.5


@pytest.mark.parametrize("s", [0.5, 1.1])
def test_the_exact_solution_is_a_fixed_point(s: float):
    # 1.1 alone has a network output other than zero, so that a gain of it has a gradient.
    oracle = Gaussian(0.3, s)
    student, method = exact(oracle), make_method("rf")

    mean, error = gain_gradient(method, student, oracle, 1.0)
    assert abs(mean) < 4 * error
    mean, error = gain_gradient(method, student, oracle, 0.8)
    assert mean < -10 * error


def test_logit_normal_times_are_the_levels_of_edm():
    student, draws = Denoiser(TwoNumbers(), sigma_data=SD), Draws(3, 0, 64)
    batch = data(Gaussian(0.0, SD), draws)
    ours, edm = (
        make_method(name, P_mean=-1.2, P_std=1.2, **more).loss(nets_of(student), batch, START, draws)
        for name, more in (("rf", {"times": "logit_normal"}), ("edm", {"reduction": "mean"}))
    )
    torch.testing.assert_close(ours.scalars["denoising_error"], edm.scalars["denoising_error"])
    sigma = (-1.2 + 1.2 * draws.normal(stream="level", dtype=torch.float64)).exp()
    ratio = ((1 + sigma) / sigma) ** 2 / ((sigma**2 + SD**2) / (sigma * SD) ** 2)
    torch.testing.assert_close(ours.loss / edm.loss, ratio)


def test_uniform_times_cover_the_noise_range():
    method = make_method("rf")
    assert isinstance(method, RF)
    sigma = Linear().level(method.times(Draws(0, 0, 100_000)))
    assert 0.002 <= float(sigma.min()) < 0.0021
    assert 19.9 < float(sigma.max()) <= 20


def test_the_sampler_takes_eulers_steps_on_the_linear_path():
    oracle, source = Gaussian(0.2, 0.8), NoiseSource(0, range(5))
    sampler = solver(DiffusionConfig(sigma_max=20.0), "euler_linear", 4)
    assert (sampler.name, sampler.nfe, sampler.sigma_max) == ("euler_linear", 4, 20.0)
    x_T = 20 * source.normal((1, 2, 2))
    t_max = 20 / 21
    x = (1 - t_max) * x_T
    for t, r in pairwise(t_max * (1 - i / 4) for i in range(5)):
        D = oracle.denoise(x / (1 - t), torch.full((5,), t / (1 - t), dtype=torch.float64))
        x = x - (t - r) * (x - D) / t
    torch.testing.assert_close(sampler.from_noise(as_denoiser(oracle), x_T, source), x, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("N", "gain"), [(128, 0.494245), (64, 0.488555), (8, 0.414785), (2, 0.2), (1, 0.0)])
def test_the_gains_of_euler_from_pure_noise(N: int, gain: float):
    sigma_max, x = 1e9, torch.ones(1, 1, 1, 1, dtype=torch.float64)
    sampler = solver(DiffusionConfig(sigma_max=sigma_max), "euler_linear", N)
    found = sampler.from_noise(as_denoiser(Gaussian(0.0, 0.5)), sigma_max * x, NoiseSource(0, [0]))
    assert found.item() == pytest.approx(gain, abs=1e-6)


def test_impossible_grids_are_refused():
    for n, end, sigma_max in ((0, 0.0, 1.0), (1, 1.0, 1.0), (1, -0.1, 1.0), (1, 0.0, math.inf)):
        with pytest.raises(ValueError, match="linear_grid: expected n >= 1"):
            linear_grid(n, end, sigma_max)
