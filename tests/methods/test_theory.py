"""The objectives against mathematics, with oracles in the place of networks."""

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from exact import SD, START, TwoNumbers, data, exact, nets_of
from tiny import make_method
from torch import Tensor

from cmcore.consistency.distances import pseudo_huber
from cmcore.diffusion.grids import karras_grid
from cmcore.diffusion.precond import Denoiser
from cmcore.diffusion.settings import DiffusionConfig
from cmcore.methods.base import Method, Nets, Progress
from cmcore.oracles import Gaussian
from cmcore.rng import Draws
from cmcore.tensors import expand_like


def mean_loss(method: Method, nets: Nets, oracle: Gaussian, draws: Draws, progress: Progress = START) -> Tensor:
    return method.loss(nets, data(oracle, draws), progress, draws).loss


def test_the_exact_stand_ins_are_exact():
    oracle, sigma = Gaussian(0.3, 0.7), torch.tensor([0.01, 0.5, 30.0], dtype=torch.float64)
    x = torch.randn(3, 1, 2, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    torch.testing.assert_close(exact(oracle)(x, sigma), oracle.denoise(x, sigma))
    f = exact(oracle, end=0.002, epsilon=0.002)(x, sigma)
    torch.testing.assert_close(f, oracle.consistency(x, sigma, 0.002))


@pytest.mark.parametrize("s", [0.5, 1.1])
@pytest.mark.parametrize("trained", [True, False], ids=["optimal", "untrained"])
def test_the_expected_edm_loss_is_that_of_the_gaussian(s: float, trained: bool):
    oracle, B = Gaussian(0.0, s), 40_000
    student = exact(oracle)
    if not trained:  # F = 0: D = c_skip x
        student.net.gain.data.zero_()
    losses = mean_loss(make_method("edm", reduction="mean"), nets_of(student), oracle, Draws(3, 0, B)).detach()
    # E over x and z at one level, then over the levels by Gauss-Hermite quadrature.
    nodes, weights = np.polynomial.hermite_e.hermegauss(80)
    sigma = np.exp(-1.2 + 1.2 * nodes)
    skip = s**2 / (s**2 + sigma**2) if trained else SD**2 / (SD**2 + sigma**2)
    at_sigma = (sigma**2 + SD**2) / (sigma * SD) ** 2 * ((skip - 1) ** 2 * s**2 + skip**2 * sigma**2)
    expected = float((weights / weights.sum() * at_sigma).sum())
    if trained and s == SD:
        assert expected == pytest.approx(1.0)  # the weight makes every level's optimal loss 1
    assert abs(float(losses.mean()) - expected) < 5 * float(losses.std()) / B**0.5


def slope(solver: str, s: float = 0.8) -> float:
    """The exponent with which CD's residual falls with the step, for the exact teacher and the exact student."""
    oracle, diffusion = Gaussian(0.2, s), DiffusionConfig(sigma_min=0.05, sigma_max=10.0)
    teacher, student = exact(oracle), exact(oracle, end=diffusion.sigma_min, epsilon=diffusion.sigma_min)
    counts = [41, 81, 161, 321]
    residuals = []
    for N in counts:
        method = make_method("cd", diffusion, N=N, solver=solver, distance="l1")
        residuals.append(float(mean_loss(method, nets_of(student, teacher), oracle, Draws(1, 0, 2000)).detach().mean()))
    h = np.log([1 / (N - 1) for N in counts])
    return float(np.polyfit(h, np.log(residuals), 1)[0])


@pytest.mark.parametrize(("solver", "order"), [("euler", 2), ("heun", 3)])
def test_the_residual_of_distillation_falls_with_the_order_of_the_solver(solver: str, order: int):
    assert slope(solver) == pytest.approx(order, abs=0.06)


def test_the_gradient_of_training_tends_to_that_of_distillation():
    """The limit theorem of the CM paper (arXiv 2303.01469, Theorem 2), on common noise and with the exact score."""
    oracle, diffusion = Gaussian(0.3, 0.6), DiffusionConfig(sigma_min=0.3, sigma_max=3.0)
    student = Denoiser(TwoNumbers(), sigma_data=SD, epsilon=diffusion.sigma_min)
    nets = nets_of(student, exact(oracle), student)

    def gradients(N: int, chunks: int = 60) -> tuple[Tensor, Tensor]:
        cd = make_method("cd", diffusion, N=N, solver="euler", distance="l2")
        ct = make_method("ct", diffusion, s0=N, s1=N, distance="l2")
        rows = []
        for seed in range(chunks):
            row = []
            for method in (cd, ct):
                loss = mean_loss(method, nets, oracle, Draws(seed, 0, 2000)).mean()
                row.append(torch.autograd.grad(loss, student.net.ab)[0] * N)  # per unit of the step
            rows.append(torch.stack(row))
        cd_rows, ct_rows = torch.stack(rows).unbind(1)
        return cd_rows, ct_rows

    cd_rows, ct_rows = gradients(N=2000)
    difference = ct_rows - cd_rows
    standard_error = difference.std(0) / len(difference) ** 0.5
    assert (cd_rows.mean(0).abs() > 10 * standard_error).all()  # there is a gradient to agree on
    assert (difference.mean(0).abs() < 4 * standard_error).all()
    # On a coarse grid they do not agree: the loss of training has the variance of its target in it.
    cd_rows, ct_rows = gradients(N=3)
    difference = ct_rows - cd_rows
    assert (difference.mean(0).abs() > 4 * difference.std(0) / len(difference) ** 0.5).any()


def test_ect_takes_the_data_where_r_is_zero():
    student = Denoiser(TwoNumbers(), sigma_data=SD)
    draws = Draws(1, 0, 64)
    batch = data(Gaussian(0.0, SD), draws)
    method = make_method("ect", q=1.5, k=1e12, stages=1)  # n(t) > q, so r = 0, in every row
    loss = method.loss(nets_of(student), batch, START, draws).loss
    t = (-1.1 + 2.0 * draws.normal(stream="level", dtype=torch.float64)).exp()
    z = draws.normal((1, 2, 2), stream="noise")
    f = student(batch.x + expand_like(t, z) * z, t, None)
    torch.testing.assert_close(loss, pseudo_huber(f, batch.x, 1e-8) / t)


@pytest.mark.parametrize("weighting", ["gap", "edm"])
def test_the_ect_loss_by_hand(weighting: str):
    student, draws = Denoiser(TwoNumbers(), sigma_data=SD), Draws(2, 0, 64)
    batch = data(Gaussian(0.0, SD), draws)
    late = Progress(images=990, total=1000, batch=10)
    loss = make_method("ect", q=2.0, stages=4, weighting=weighting, huber_c=0.06).loss(
        nets_of(student), batch, late, draws
    ).loss  # fmt: skip
    t = (-1.1 + 2.0 * draws.normal(stream="level", dtype=torch.float64)).exp()
    r = (t * (1 - (1 + 8 / (1 + t.exp())) / 2**4)).clamp(min=0)
    z = draws.normal((1, 2, 2), stream="noise")
    with torch.no_grad():
        f_t = student(batch.x + expand_like(t, z) * z, t, None)
        f_r = student(batch.x + expand_like(r, z) * z, r, None)
    weight = 1 / (t - r) if weighting == "gap" else (t**2 + SD**2) / (t * SD) ** 2
    assert (r > 0).any()
    torch.testing.assert_close(loss.detach(), weight * pseudo_huber(f_t, f_r, 0.06))


def test_the_ict_loss_by_hand():
    diffusion = DiffusionConfig()
    student, draws = Denoiser(TwoNumbers(), sigma_data=SD, epsilon=diffusion.sigma_min), Draws(2, 0, 4000)
    batch = data(Gaussian(0.0, SD), draws)
    method = make_method("ict", diffusion)
    loss = method.loss(nets_of(student), batch, START, draws).loss.detach()
    grid = karras_grid(11, 0.002, 80.0).flip(0)
    z, seen = draws.normal((1, 2, 2), stream="noise"), torch.zeros(4000, dtype=torch.long)
    with torch.no_grad():
        for r, t in pairwise(grid):
            levels = t.expand(4000), r.expand(4000)
            f_t, f_r = (student(batch.x + expand_like(level, z) * z, level, None) for level in levels)
            c = 0.00054 * 4**0.5
            fits = torch.isclose(loss, pseudo_huber(f_t, f_r, c) / (t - r), rtol=1e-6)
            seen += fits
    assert torch.equal(seen, torch.ones_like(seen))  # every sample is at one gap of the grid, with that gap's weight


@pytest.mark.parametrize("kind", ["sct", "scd"])
def test_the_continuous_losses_leave_the_exact_solution_alone(kind: str):
    # N(0.4, s^2) with s -> 0, one point: there the data give the velocity that the teacher gives.
    s = 1e-3
    oracle = Gaussian(0.4, s)
    student, draws = exact(oracle, end=0.0), Draws(0, 0, 64)
    config: dict[str, Any] = {"P_mean": -0.5, "P_std": 0.5, "warmup_images": 0}
    method = make_method(kind, **config)
    made = {name: network.make() for name, network in method.networks.items() if network.make is not None}
    nets = Nets({**made, **nets_of(student, exact(oracle)).modules})
    batch = data(oracle, draws)
    good = method.loss(nets, batch, START, draws).scalars["tangent_norm"]
    student.net.gain.data.fill_(0.9)
    bad = method.loss(nets, batch, START, draws).scalars["tangent_norm"]
    assert bad > 1e-2
    assert good < (1e-6 if kind == "scd" else 1e-2)
    assert bad > 20 * good
