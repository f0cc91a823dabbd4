"""Grids of noise levels, descending and in float64."""

import torch
from torch import Tensor

from cmcore.diffusion.path import Linear


def karras_grid(n: int, sigma_min: float, sigma_max: float, rho: float = 7.0) -> Tensor:
    """n levels from sigma_max down to sigma_min, equidistant in sigma^(1/rho) (EDM, arXiv 2206.00364, Eq. 5).

    The powers miss the ends by some ulps; f(x, sigma_min) = x needs the constants themselves, so both are set.
    """
    if n < 2:
        raise ValueError(f"karras_grid: expected at least 2 levels (both ends are on the grid), got n={n}")
    if not 0 < sigma_min < sigma_max < float("inf"):
        raise ValueError(f"karras_grid: expected 0 < sigma_min < sigma_max, got {sigma_min} and {sigma_max}")
    if not rho > 0:
        raise ValueError(f"karras_grid: expected rho > 0, got {rho}")
    ends = torch.tensor([sigma_max, sigma_min], dtype=torch.float64)
    first, last = ends ** (1 / rho)
    grid = (first + torch.arange(n, dtype=torch.float64) / (n - 1) * (last - first)) ** rho
    grid[0], grid[-1] = ends
    return grid


def linear_grid(n: int, end: float, sigma_max: float) -> Tensor:
    """n + 1 levels from sigma_max down to `end`, equidistant in the time sigma / (1 + sigma) of the linear path."""
    if n < 1 or not 0 <= end < sigma_max < float("inf"):
        raise ValueError(
            f"linear_grid: expected n >= 1 and 0 <= end < sigma_max, got n={n}, end={end} and sigma_max={sigma_max}"
        )
    path, ends = Linear(), torch.tensor([sigma_max, end], dtype=torch.float64)
    first, last = path.time(ends)
    grid = path.level(first + torch.arange(n + 1, dtype=torch.float64) / n * (last - first))
    grid[0], grid[-1] = ends
    return grid


def with_zero(grid: Tensor) -> Tensor:
    """The grid (N,) with sigma = 0 appended: (N+1,), so that a solver's last step ends on the clean image."""
    return torch.cat([grid, grid.new_zeros(1)])
