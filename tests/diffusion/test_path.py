"""Paths: derivatives by automatic differentiation, inverses, and the papers' numbers, in float64."""

import pytest
import torch
from torch import Tensor

from cmcore.diffusion.path import VE, Linear, Path, TrigFlow
from cmcore.oracles import Gaussian
from cmcore.tensors import expand_like

PATHS = [VE(), TrigFlow(0.5), TrigFlow(1.0), Linear()]


@pytest.fixture
def t() -> Tensor:
    return torch.linspace(0.01, 0.97, 7, dtype=torch.float64)


def normal(seed: int) -> Tensor:
    return torch.randn(7, 2, 3, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("path", PATHS, ids=repr)
def test_derivatives_are_those_of_the_coefficients(path: Path, t: Tensor):
    t = t.requires_grad_()
    point = path.at(t)
    for coefficient, derivative in ((point.alpha, point.d_alpha), (point.sigma, point.d_sigma)):
        # The zero lets a constant coefficient have a gradient too.
        (expected,) = torch.autograd.grad((coefficient + 0 * t).sum(), t, retain_graph=True)
        torch.testing.assert_close(derivative, expected)


@pytest.mark.parametrize("path", PATHS, ids=repr)
def test_velocity_is_the_derivative_of_the_mixture(path: Path, t: Tensor):
    x0, z = normal(3), path.noise_std * normal(4)
    before, after = path.at(t - 1e-6).mix(x0, z), path.at(t + 1e-6).mix(x0, z)
    torch.testing.assert_close(path.at(t).velocity(x0, z), (after - before) / 2e-6, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("path", PATHS, ids=repr)
def test_time_is_the_inverse_of_the_level_which_is_the_ratio_of_noise_to_signal(path: Path, t: Tensor):
    point, level = path.at(t), path.level(t)
    torch.testing.assert_close(level, path.noise_std * point.sigma / point.alpha, rtol=1e-12, atol=0)
    assert (level.diff() > 0).all(), "time grows with noise"
    torch.testing.assert_close(path.time(level), t, rtol=1e-12, atol=0)


@pytest.mark.parametrize("path", PATHS, ids=repr)
def test_a_point_over_alpha_is_the_ve_point_of_its_level(path: Path, t: Tensor):
    x0, z = normal(3), normal(4)
    point = path.at(t)
    x_t = point.mix(x0, path.noise_std * z)
    ve = VE().at(path.level(t)).mix(x0, z)
    torch.testing.assert_close(x_t / expand_like(point.alpha, x_t), ve, rtol=1e-11, atol=1e-12)
    # So the exact denoiser, known in VE time, gives the score of the marginal N(0, alpha^2 s^2 + (noise_std sigma)^2).
    s, std = 0.7, path.noise_std * point.sigma
    D = Gaussian(0.0, s).denoise(ve, path.level(t))
    score = (expand_like(point.alpha, D) * D - x_t) / expand_like(std**2, D)
    torch.testing.assert_close(score, -x_t / expand_like(point.alpha**2 * s**2 + std**2, D), rtol=1e-9, atol=1e-9)


def test_levels_of_edm_are_these_times_of_trigflow():
    sigma = torch.tensor([0.98238, 80.0], dtype=torch.float64)
    assert TrigFlow(0.5).time(sigma).tolist() == pytest.approx([1.1, 1.564546], abs=5e-6)
