"""Densities of noise levels: quantiles against known values and their own CDF, and numerical integration."""

import math
from statistics import NormalDist

import pytest
import torch

from cmcore.diffusion.grids import karras_grid
from cmcore.diffusion.levels import (
    KarrasUniform,
    Levels,
    LogNormal,
    TruncatedLogNormal,
    TruncatedStudentT,
    discretised_lognormal,
    sample_index,
)

DENSITIES = [
    LogNormal(-1.2, 1.2),
    TruncatedLogNormal(-1.1, 2.0, 0.002, 20.0),
    KarrasUniform(0.002, 80.0),
    TruncatedStudentT(0.01, 0.2, 1.0, 80.0),
]


@pytest.mark.parametrize("levels", DENSITIES, ids=lambda d: type(d).__name__)
def test_the_cdf_undoes_the_quantile(levels: Levels):
    u = torch.linspace(0, 1, 201, dtype=torch.float64)[1:-1]
    sigma = levels.sample(u)
    assert sigma.dtype == torch.float64
    assert (sigma.diff() > 0).all()
    torch.testing.assert_close(levels.cdf(sigma), u, rtol=1e-11, atol=1e-13)


def test_lognormal_quantiles_match_the_standard_library():
    u = torch.tensor([0.001, 0.3, 0.5, 0.9, 0.9999], dtype=torch.float64)
    normal = NormalDist(-1.1, 2.0)
    expected = torch.tensor([math.exp(normal.inv_cdf(v)) for v in u.tolist()], dtype=torch.float64)
    torch.testing.assert_close(LogNormal(-1.1, 2.0).sample(u), expected, rtol=1e-9, atol=0)


@pytest.mark.parametrize("levels", DENSITIES, ids=lambda d: type(d).__name__)
def test_every_number_that_rand_can_draw_gives_a_positive_finite_level(levels: Levels):
    sigma = levels.sample(torch.tensor([0.0, 2.0**-53, 1 - 2.0**-53], dtype=torch.float64))
    assert (sigma > 0).all()
    assert torch.isfinite(sigma).all()


@pytest.mark.parametrize("levels", DENSITIES[1:], ids=lambda d: type(d).__name__)
def test_bounded_densities_reach_their_ends_and_no_further(
    levels: TruncatedLogNormal | KarrasUniform | TruncatedStudentT,
):
    lo, hi = (levels.sigma_min, levels.sigma_max) if isinstance(levels, KarrasUniform) else (levels.lo, levels.hi)
    ends = levels.sample(torch.tensor([0.0, 1 - 2.0**-53], dtype=torch.float64))
    torch.testing.assert_close(ends, torch.tensor([lo, hi], dtype=torch.float64), rtol=1e-9, atol=0)
    assert lo <= ends[0]
    assert ends[1] <= hi
    assert levels.cdf(torch.tensor([lo / 2, hi * 2])).tolist() == [0.0, 1.0]


def test_truncation_is_conditioning():
    parent, sigma = LogNormal(-1.1, 2.0), torch.tensor([0.01, 0.5, 10.0], dtype=torch.float64)
    lo, hi = parent.cdf(torch.tensor([0.002, 20.0], dtype=torch.float64))
    expected = (parent.cdf(sigma) - lo) / (hi - lo)
    torch.testing.assert_close(TruncatedLogNormal(-1.1, 2.0, 0.002, 20.0).cdf(sigma), expected)


def test_karras_uniform_has_the_grid_as_its_quantiles():
    u = torch.linspace(0, 1, 18, dtype=torch.float64)
    torch.testing.assert_close(
        KarrasUniform(0.002, 80.0).sample(u), karras_grid(18, 0.002, 80.0).flip(0), rtol=1e-12, atol=0
    )


def test_ict_probabilities_at_eleven_levels():
    p = discretised_lognormal(karras_grid(11, 0.002, 80.0).flip(0), P_mean=-1.1, P_std=2.0)
    expected = [0.06263, 0.18174, 0.24550, 0.21349, 0.14245, 0.08060, 0.04108, 0.01958, 0.00894, 0.00398]
    torch.testing.assert_close(p, torch.tensor(expected, dtype=torch.float64), rtol=0, atol=6e-6)


@pytest.mark.parametrize("n", [11, 1281])
def test_ict_probabilities_are_the_integral_of_the_lognormal(n: int):
    grid = karras_grid(n, 0.002, 80.0).flip(0)
    p = discretised_lognormal(grid)
    assert p.shape == (n - 1,)
    assert p.sum().item() == pytest.approx(1, abs=1e-12)
    # Simpson's rule for the density of ln sigma, over every gap.
    a, b = grid[:-1].log(), grid[1:].log()
    nodes = a[:, None] + (b - a)[:, None] * torch.linspace(0, 1, 41, dtype=torch.float64)
    weights = torch.tensor([1.0, *[4.0, 2.0] * 19, 4.0, 1.0], dtype=torch.float64)
    mass = (b - a) * (torch.exp(-(((nodes + 1.1) / 2.0) ** 2) / 2) * weights).sum(1)
    torch.testing.assert_close(p, mass / mass.sum(), rtol=1e-6, atol=1e-12)


def test_indices_have_the_given_frequencies():
    p = torch.tensor([0.0, 0.25, 0.0, 0.5, 0.25, 0.0], dtype=torch.float64)
    u = (torch.arange(1000, dtype=torch.float64) + 0.5) / 1000
    assert sample_index(p, u).bincount(minlength=6).tolist() == [0, 250, 0, 500, 250, 0]


def test_impossible_indices_are_never_drawn_at_the_ends_of_the_unit_interval():
    p = torch.tensor([0.0, 0.1, 0.2, 0.7, 0.0], dtype=torch.float64)
    index = sample_index(p, torch.tensor([0.0, 1 - 2.0**-53], dtype=torch.float64))
    assert index.dtype == torch.int64
    assert index.tolist() == [1, 3]


def test_impossible_densities_are_refused():
    with pytest.raises(ValueError, match="P_std"):
        LogNormal(0.0, 0.0)
    with pytest.raises(ValueError, match="lower < upper"):
        KarrasUniform(1.0, 0.5)
    with pytest.raises(ValueError, match="some probability"):
        TruncatedLogNormal(0.0, 0.01, 1e-9, 1e-8)
    with pytest.raises(ValueError, match="ascending"):
        discretised_lognormal(karras_grid(5, 0.1, 1.0))
    with pytest.raises(ValueError, match="got none"):
        discretised_lognormal(karras_grid(5, 0.1, 1.0).flip(0), P_mean=100.0, P_std=0.1)


def test_student_t_quantiles():
    """TCM's proposal for CIFAR-10, and a wide density over both signs of ln sigma, against SciPy."""
    u = torch.tensor([0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95], dtype=torch.float64)
    known = torch.tensor([1.006, 1.0127, 1.043, 1.2211, 2.5235, 10.44, 24.65], dtype=torch.float64)
    torch.testing.assert_close(TruncatedStudentT(0.01, 0.2, 1.0, 80.0).sample(u), known, rtol=5e-4, atol=0)
    stats = pytest.importorskip("scipy.stats")
    below, upto = stats.t.cdf([math.log(0.01) / 0.7, math.log(50.0) / 0.7], 3.0)
    expected = torch.from_numpy(0.7 * stats.t.ppf(below + (upto - below) * u.numpy(), 3.0)).exp()
    torch.testing.assert_close(TruncatedStudentT(3.0, 0.7, 0.01, 50.0).sample(u), expected, rtol=1e-6, atol=0)
