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


def uniform_pair(u: Tensor, points: int, diffusion: DiffusionConfig) -> Pair:
    """t_{n+1} and t_n with n uniform over the N - 1 gaps of the Karras grid (arXiv 2303.01469, Alg. 2 and 3)."""
    grid = _ascending(points, diffusion, u.device)
    n = (u * (points - 1)).long().clamp(max=points - 2)
    return Pair(t=grid[n + 1], r=grid[n])


def lognormal_pair(u: Tensor, points: int, diffusion: DiffusionConfig, P_mean: float, P_std: float) -> Pair:
    """t_{n+1} and t_n with n from the discretised lognormal (arXiv 2310.14189, Eq. 10)."""
    grid = _ascending(points, diffusion, u.device)
    n = sample_index(_probabilities(points, diffusion, u.device, P_mean, P_std), u)
    return Pair(t=grid[n + 1], r=grid[n])
