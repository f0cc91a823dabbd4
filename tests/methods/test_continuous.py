"""The continuous-time objectives of 2023: the limits of CD and CT, and the exact consistency function."""

import pytest
import torch
from exact import SD, START, TwoNumbers, data, exact, nets_of
from tiny import make_method
from torch import Tensor

from cmcore.consistency.weights import grid_gap
from cmcore.diffusion.precond import Denoiser
from cmcore.diffusion.settings import DiffusionConfig
from cmcore.methods.base import Method, Nets
from cmcore.oracles import Gaussian
from cmcore.rng import Draws

DIFFUSION = DiffusionConfig(sigma_min=0.05, sigma_max=10.0)
ORACLE = Gaussian(0.2, 1.1)  # not sigma_data, for which F = 0


def gradient(method: Method, nets: Nets, count: int = 500, seed: int = 0) -> Tensor:
    draws = Draws(seed, 0, count)
    loss = method.loss(nets, data(ORACLE, draws), START, draws).loss.mean()
    (parameter,) = nets.student.net.parameters()
    return torch.autograd.grad(loss, parameter)[0]


@pytest.mark.parametrize(("kind", "discrete"), [("ccd", "cd"), ("cct", "ct")])
def test_the_gradient_is_the_limit_of_that_of_the_fine_grid(kind: str, discrete: str):
    """On common noise, N - 1 = 20000 gaps: d ||f - f_r||^2 is twice <df, f - f_r>, and a mean over 4 pixels."""
    N = 20_001
    grid = {"N": N, "solver": "euler"} if discrete == "cd" else {"s0": N, "s1": N}
    student = Denoiser(TwoNumbers(), sigma_data=SD, epsilon=DIFFUSION.sigma_min)
    nets = nets_of(student, exact(ORACLE), student)
    fine = gradient(make_method(discrete, DIFFUSION, distance="l2", **grid), nets) * (N - 1) * 4 / 2
    limit = gradient(make_method(kind, DIFFUSION, weighting="grid"), nets)
    torch.testing.assert_close(fine, limit, rtol=2e-3, atol=0)
    assert (gradient(make_method(kind, DIFFUSION), nets) / limit - 1).abs().max() > 0.1  # the weight tells


def test_the_weight_of_the_grid():
    t = torch.tensor([0.07, 1.0, 9.0], dtype=torch.float64)
    d, h = DIFFUSION, 1e-6
    lo, hi = d.sigma_min ** (1 / d.rho), d.sigma_max ** (1 / d.rho)
    u = (t ** (1 / d.rho) - lo) / (hi - lo)
    expected = ((lo + (u + h) * (hi - lo)) ** d.rho - (lo + (u - h) * (hi - lo)) ** d.rho) / (2 * h)
    torch.testing.assert_close(grid_gap(t, d), expected, rtol=1e-8, atol=0)


def test_distillation_leaves_the_exact_solution_alone():
    student = exact(ORACLE, end=DIFFUSION.sigma_min, epsilon=DIFFUSION.sigma_min)
    nets, draws = nets_of(student, exact(ORACLE)), Draws(1, 0, 200)
    for stop_gradient in (True, False):
        method = make_method("ccd", DIFFUSION, stop_gradient=stop_gradient)
        student.net.gain.data.fill_(1.0)
        assert method.loss(nets, data(ORACLE, draws), START, draws).scalars["derivative_norm"] < 1e-12
        student.net.gain.data.fill_(0.9)
        assert method.loss(nets, data(ORACLE, draws), START, draws).scalars["derivative_norm"] > 1e-2


def test_training_leaves_the_exact_solution_alone_on_average():
    """The velocity of one sample has the mean of the flow's, so the gradient has mean zero, and not without it."""
    student = exact(ORACLE, end=DIFFUSION.sigma_min, epsilon=DIFFUSION.sigma_min)
    method = make_method("cct", DIFFUSION)

    def mean_over_error() -> float:
        found = torch.stack([gradient(method, nets_of(student), 4000, seed) for seed in range(30)])
        return abs(float(found.mean() / (found.std() / len(found) ** 0.5)))

    assert mean_over_error() < 4
    student.net.gain.data.fill_(0.9)
    assert mean_over_error() > 8


def test_the_norm_is_differentiated_through_the_derivative():
    student = Denoiser(TwoNumbers(), sigma_data=SD, epsilon=DIFFUSION.sigma_min)
    nets, method = nets_of(student, exact(ORACLE)), make_method("ccd", DIFFUSION, stop_gradient=False)
    draws = Draws(3, 0, 50)

    def value() -> Tensor:
        return method.loss(nets, data(ORACLE, draws), START, draws).loss.mean()

    found, h = torch.autograd.grad(value(), student.net.ab)[0], 1e-5
    for index in range(2):
        with torch.no_grad():
            student.net.ab[index] += h
            above = value()
            student.net.ab[index] -= 2 * h
            below = value()
            student.net.ab[index] += h
        assert float(found[index]) == pytest.approx(float((above - below) / (2 * h)), rel=1e-6)
