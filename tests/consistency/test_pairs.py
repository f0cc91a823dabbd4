"""Pairs of levels: neighbours on the grid, met as often as they should be."""

import pytest
import torch
from torch import Tensor

from cmcore.consistency.pairs import Pair, lognormal_pair, uniform_below, uniform_pair
from cmcore.diffusion.grids import karras_grid
from cmcore.diffusion.settings import DiffusionConfig

DIFFUSION = DiffusionConfig()
# iCT at N = 11 with P_mean = -1.1, P_std = 2: the share of each gap (arXiv 2310.14189, Eq. 10).
SHARES = [0.06263, 0.18174, 0.24550, 0.21349, 0.14245, 0.08060, 0.04108, 0.01958, 0.00894, 0.00398]


def gap_of(pair: Pair, points: int) -> Tensor:
    """Which gap of the grid each pair is; fails where one is none."""
    grid = karras_grid(points, DIFFUSION.sigma_min, DIFFUSION.sigma_max, DIFFUSION.rho).flip(0)
    n = torch.searchsorted(grid, pair.r)
    assert torch.equal(grid[n], pair.r)
    assert torch.equal(grid[n + 1], pair.t)
    return n


def grid_of_u(count: int) -> Tensor:
    """Evenly spread uniform numbers: every frequency is then exact to 1/count."""
    return (torch.arange(count, dtype=torch.float64) + 0.5) / count


@pytest.mark.parametrize("points", [2, 3, 18, 151])
def test_uniform_pairs_are_neighbours_met_equally_often(points: int):
    count = 1000 * (points - 1)
    n = gap_of(uniform_pair(grid_of_u(count), points, DIFFUSION), points)
    assert n.bincount(minlength=points - 1).tolist() == [1000] * (points - 1)


def test_a_skipping_step_leads_down_to_the_first_point():
    t, r = uniform_pair(grid_of_u(17_000), 18, DIFFUSION, skip=5)
    grid = karras_grid(18, DIFFUSION.sigma_min, DIFFUSION.sigma_max, DIFFUSION.rho).flip(0)
    n, m = (torch.searchsorted(grid, level) for level in (t, r))
    assert n.bincount().tolist() == [0] + [1000] * 17
    assert torch.equal(m, (n - 5).clamp(min=0))


def test_points_below_are_met_equally_often_with_the_level_itself():
    grid = karras_grid(18, DIFFUSION.sigma_min, DIFFUSION.sigma_max, DIFFUSION.rho).flip(0)
    for n in (0, 1, 12):
        s = uniform_below(grid_of_u(1000 * (n + 1)), grid[n].repeat(1000 * (n + 1)), 18, DIFFUSION)
        assert torch.searchsorted(grid, s).bincount().tolist() == [1000] * (n + 1)


def test_lognormal_pairs_are_neighbours_met_as_often_as_published():
    u = grid_of_u(200_000)
    n = gap_of(lognormal_pair(u, 11, DIFFUSION, P_mean=-1.1, P_std=2.0), 11)
    shares = n.bincount(minlength=10).double() / len(u)
    torch.testing.assert_close(shares, torch.tensor(SHARES, dtype=torch.float64), rtol=0, atol=1.1e-5)


@pytest.mark.parametrize("points", [2, 11, 1281])
def test_the_ends_of_the_unit_interval_are_the_ends_of_the_grid(points: int):
    u = torch.tensor([0.0, 1 - 2**-53], dtype=torch.float64)
    for pair in (uniform_pair(u, points, DIFFUSION), lognormal_pair(u, points, DIFFUSION, -1.1, 2.0)):
        assert pair.t.dtype == pair.r.dtype == torch.float64
        assert (pair.r[0].item(), pair.t[1].item()) == (DIFFUSION.sigma_min, DIFFUSION.sigma_max)
