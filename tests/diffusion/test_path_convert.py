"""Paths: derivatives by automatic differentiation, inverses, and round trips of every conversion, in float64."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from cmcore.diffusion import convert
from cmcore.diffusion.path import VE, Linear, Path, PathPoint, TrigFlow
from cmcore.oracles import Gaussian
from cmcore.tensors import expand_like

PATHS = [VE(), TrigFlow(0.5), TrigFlow(1.0), Linear()]
Conversion = Callable[[Tensor, Tensor, PathPoint], Tensor]


@pytest.fixture
def t() -> Tensor:
    return torch.linspace(0.01, 0.97, 7, dtype=torch.float64)


@pytest.fixture
def x() -> Tensor:
    return torch.randn(7, 2, 3, 3, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


@pytest.fixture
def x0() -> Tensor:
    return torch.randn(7, 2, 3, 3, generator=torch.Generator().manual_seed(4), dtype=torch.float64)


@pytest.mark.parametrize("path", PATHS, ids=repr)
def test_derivatives_are_those_of_the_coefficients(path: Path, t: Tensor):
    t = t.requires_grad_()
    point = path.at(t)
    for coefficient, derivative in ((point.alpha, point.d_alpha), (point.sigma, point.d_sigma)):
        # The zero lets a constant coefficient have a gradient too.
        (expected,) = torch.autograd.grad((coefficient + 0 * t).sum(), t, retain_graph=True)
        torch.testing.assert_close(derivative, expected)


@pytest.mark.parametrize("path", PATHS, ids=repr)
def test_time_of_ratio_is_the_inverse_of_the_noise_to_signal_ratio(path: Path, t: Tensor):
    point = path.at(t)
    ratio = point.sigma / point.alpha
    assert (ratio.diff() > 0).all(), "time grows with noise"
    torch.testing.assert_close(path.time_of_ratio(ratio), t, rtol=1e-12, atol=0)


@pytest.mark.parametrize("path", PATHS, ids=repr)
@pytest.mark.parametrize(
    ("there", "back"),
    [
        (convert.eps_from_x0, convert.x0_from_eps),
        (convert.velocity_from_x0, convert.x0_from_velocity),
        (convert.score_from_x0, convert.x0_from_score),
    ],
    ids=["eps", "velocity", "score"],
)
def test_conversions_round_trip(path: Path, there: Conversion, back: Conversion, t: Tensor, x: Tensor, x0: Tensor):
    point = path.at(t)
    torch.testing.assert_close(back(x, there(x, x0, point), point), x0, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(there(x, back(x, x0, point), point), x0, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("path", PATHS, ids=repr)
def test_conversions_recover_what_a_point_was_made_of(path: Path, t: Tensor, x: Tensor, x0: Tensor):
    z, point = x, path.at(t)
    x_t = expand_like(point.alpha, x0) * x0 + expand_like(point.sigma, z) * z
    torch.testing.assert_close(convert.eps_from_x0(x_t, x0, point), z, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(
        convert.score_from_x0(x_t, x0, point), -z / expand_like(point.sigma, z), rtol=1e-9, atol=1e-9
    )
    torch.testing.assert_close(
        convert.velocity_from_x0(x_t, x0, point), velocity_of_path(path, t, x0, z), rtol=1e-8, atol=1e-8
    )


def velocity_of_path(path: Path, t: Tensor, x0: Tensor, z: Tensor) -> Tensor:
    """dx_t/dt by central differences."""
    before, after = path.at(t - 1e-6), path.at(t + 1e-6)
    d_alpha, d_sigma = (after.alpha - before.alpha) / 2e-6, (after.sigma - before.sigma) / 2e-6
    return expand_like(d_alpha, x0) * x0 + expand_like(d_sigma, z) * z


def test_velocity_gives_x0_at_both_ends_of_the_bounded_paths(x: Tensor):
    for path, end in ((TrigFlow(0.5), torch.pi / 2), (Linear(), 1.0)):
        start = path.at(torch.zeros(7, dtype=torch.float64))
        torch.testing.assert_close(convert.x0_from_velocity(x, torch.zeros_like(x), start), x)  # no noise: x is x_0
        finish = path.at(torch.full((7,), end, dtype=torch.float64))
        v = convert.velocity_from_x0(x, x / 2, finish)
        torch.testing.assert_close(convert.x0_from_velocity(x, v, finish), x / 2)


@pytest.mark.parametrize("path", PATHS, ids=repr)
def test_the_score_is_the_gradient_of_the_gaussian_marginal(path: Path, t: Tensor, x: Tensor):
    """x_t ~ N(0, alpha^2 s^2 + sigma^2) on any path, for data N(0, s^2) whose denoiser is known in VE time."""
    s, point = 0.7, path.at(t)
    x_ve, sigma_ve = convert.change_path(x, t, path, VE())
    score = convert.score_from_x0(x, Gaussian(0.0, s).denoise(x_ve, sigma_ve), point)
    torch.testing.assert_close(
        score, -x / expand_like(point.alpha**2 * s**2 + point.sigma**2, x), rtol=1e-10, atol=1e-10
    )


@pytest.mark.parametrize("source", PATHS, ids=repr)
@pytest.mark.parametrize("target", PATHS, ids=repr)
def test_changing_path_and_back(source: Path, target: Path, t: Tensor, x: Tensor, x0: Tensor):
    there = convert.change_path(x, t, source, target)
    x_back, t_back = convert.change_path(*there, target, source)
    torch.testing.assert_close(x_back, x, rtol=1e-11, atol=1e-12)
    torch.testing.assert_close(t_back, t, rtol=1e-11, atol=0)
    # The same point holds the same noise.
    here_eps = convert.eps_from_x0(x, x0, source.at(t))
    there_eps = convert.eps_from_x0(there[0], x0, target.at(there[1]))
    torch.testing.assert_close(there_eps, here_eps, rtol=1e-9, atol=1e-9)


def test_edm_and_trigflow_points(x: Tensor):
    sigma = torch.tensor([0.002, 0.1, 0.5, 0.98238, 1.526, 20.0, 80.0], dtype=torch.float64)
    x_t, t = convert.ve_to_trig(x, sigma, 0.5)
    assert t[3].item() == pytest.approx(1.1, abs=5e-6)
    assert t[6].item() == pytest.approx(1.564546, abs=5e-7)
    torch.testing.assert_close(x_t, expand_like(torch.cos(t), x) * x)
    x_back, sigma_back = convert.trig_to_ve(x_t, t, 0.5)
    torch.testing.assert_close(x_back, x, rtol=1e-11, atol=1e-12)
    torch.testing.assert_close(sigma_back, sigma, rtol=1e-11, atol=0)
