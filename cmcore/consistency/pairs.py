"""Pairs of neighbouring noise levels (t, r), t > r, for the discrete-time methods. All float64.

A grid stays the same for many steps, so it is kept, on the device.
"""

from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from cmcore.diffusion.grids import karras_grid
from cmcore.diffusion.levels import discretised_lognormal, sample_index
from cmcore.diffusion.settings import DiffusionConfig


class Pair(NamedTuple):
    """The student's levels t (B,) and the target's levels r (B,)."""

    t: Tensor
    r: Tensor


@lru_cache(maxsize=4)
def _ascending(points: int, diffusion: DiffusionConfig, device: torch.device) -> Tensor:
    grid = karras_grid(points, diffusion.sigma_min, diffusion.sigma_max, diffusion.rho)
    return grid.flip(0).to(device)


@lru_cache(maxsize=4)
def _probabilities(
    points: int, diffusion: DiffusionConfig, device: torch.device, P_mean: float, P_std: float
) -> Tensor:
    grid = _ascending(points, diffusion, torch.device("cpu"))  # it is checked here, which a device would be waited for
    return discretised_lognormal(grid, P_mean, P_std).to(device)


def uniform_pair(u: Tensor, points: int, diffusion: DiffusionConfig, skip: int = 1) -> Pair:
    """t_{n+1} and t_n with n uniform over the N - 1 gaps of the Karras grid (arXiv 2303.01469, Alg. 2 and 3).

    With a skipping step r is so many points below t (LCM, arXiv 2310.04378, sec. 4.3), or the first point where there
    are fewer, as in the training scripts of diffusers: so every chain of pairs ends on the boundary.
    """
    grid = _ascending(points, diffusion, u.device)
    n = (u * (points - 1)).long().clamp(max=points - 2)
    return Pair(t=grid[n + 1], r=grid[(n + 1 - skip).clamp(min=0)])


def uniform_below(u: Tensor, r: Tensor, points: int, diffusion: DiffusionConfig) -> Tensor:
    """A point s <= r (B,) of the grid, uniform over those that there are; r is one of them."""
    grid = _ascending(points, diffusion, u.device)
    return grid[(u * (torch.searchsorted(grid, r) + 1)).long()]


def lognormal_pair(u: Tensor, points: int, diffusion: DiffusionConfig, P_mean: float, P_std: float) -> Pair:
    """t_{n+1} and t_n with n from the discretised lognormal (arXiv 2310.14189, Eq. 10)."""
    grid = _ascending(points, diffusion, u.device)
    n = sample_index(_probabilities(points, diffusion, u.device, P_mean, P_std), u)
    return Pair(t=grid[n + 1], r=grid[n])
