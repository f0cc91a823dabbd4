"""Solvers of the probability-flow ODE, for diffusion models.

A grid (N,) holds the visited levels in descending order: `with_zero(karras_grid(...))` ends on clean images.
"""

from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

import torch
from torch import Tensor

from cmcore.diffusion.ode import Denoise, dpmpp_2m_step, dpmpp_2s_step, euler_step, heun_step
from cmcore.rng import NoiseSource
from cmcore.sample.base import Sampler, check_levels


@dataclass(frozen=True, eq=False)
class GridSampler(Sampler):
    """A sampler on a descending grid, with one evaluation per step unless a solver overrides it."""

    grid: Tensor

    def __post_init__(self) -> None:
        check_levels(self.grid, type(self).__name__)

    @property
    def steps(self) -> int:
        """Number of steps between levels."""
        return len(self.grid) - 1

    @property
    def nfe(self) -> int:
        return self.steps

    @property
    def sigma_max(self) -> float:
        return float(self.grid[0])

    def levels(self, x: Tensor) -> Tensor:
        """The grid repeated for every sample of x: (N, B), float64, on the device of x."""
        return self.grid.to(x.device, torch.float64)[:, None].expand(-1, len(x))


@dataclass(frozen=True, eq=False)
class Euler(GridSampler):
    """Order 1: EDM's Algorithm 1 without its correction (arXiv 2206.00364). In VE time this is DDIM."""

    name: ClassVar[str] = "euler"

    @torch.no_grad()
    def from_noise(self, denoiser: Denoise, x_T: Tensor, source: NoiseSource, labels: Tensor | None = None) -> Tensor:
        del source  # deterministic
        x = x_T.double()
        for sigma, sigma_next in pairwise(self.levels(x)):
            x = euler_step(denoiser, x, sigma, sigma_next, labels)
        return x


class LinearEuler(Euler):
    """Euler's steps in the time of the linear path (rectified flow, arXiv 2209.03003), on a grid that suits it.

    x_t - (t - r) v is the same point as Euler's step in VE time, so that only the grid, see `linear_grid`, differs.
    """

    name: ClassVar[str] = "euler_linear"


@dataclass(frozen=True, eq=False)
class Heun(GridSampler):
    """Order 2: EDM's Algorithm 1, or with S_churn > 0 its stochastic Algorithm 2 (arXiv 2206.00364).

    Best stochastic setting of the paper, ImageNet-64 with 256 levels: S_churn 40, S_min 0.05, S_max 50, S_noise 1.003.
    """

    S_churn: float = 0.0
    S_min: float = 0.0
    S_max: float = float("inf")
    S_noise: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (self.S_churn >= 0 and self.S_noise >= 0 and self.S_min <= self.S_max):
            raise ValueError(f"Heun: expected S_churn >= 0, S_noise >= 0 and S_min <= S_max, got {self}")

    @property
    def name(self) -> str:  # pyright: ignore[reportIncompatibleVariableOverride]
        return "heun_churn" if self.S_churn else "heun"

    @property
    def nfe(self) -> int:
        return 2 * self.steps - int(self.grid[-1] == 0)

    @torch.no_grad()
    def from_noise(self, denoiser: Denoise, x_T: Tensor, source: NoiseSource, labels: Tensor | None = None) -> Tensor:
        x = x_T.double()
        levels = self.levels(x)
        for i, sigma_next in enumerate(levels[1:]):
            x, sigma = self._churn(x, levels[i], self.gamma(float(self.grid[i])), source)
            # At sigma = 0 there is no velocity to correct with, so the last step of a grid that ends there is Euler's.
            step = euler_step if self.grid[i + 1] == 0 else heun_step
            x = step(denoiser, x, sigma, sigma_next, labels)
        return x

    def gamma(self, sigma: float) -> float:
        """Relative increase of the level before a step (Algorithm 2, line 4)."""
        return min(self.S_churn / self.steps, 2**0.5 - 1) if self.S_min <= sigma <= self.S_max else 0.0

    def _churn(self, x: Tensor, sigma: Tensor, gamma: float, source: NoiseSource) -> tuple[Tensor, Tensor]:
        """Add noise to go from sigma up to (1 + gamma) sigma (Algorithm 2, lines 5-6)."""
        if gamma == 0:
            return x, sigma
        added = sigma[0] * ((1 + gamma) ** 2 - 1) ** 0.5
        return x + added * self.S_noise * source.normal(x.shape[1:]), sigma * (1 + gamma)


@dataclass(frozen=True, eq=False)
class DPMSolverPP2M(GridSampler):
    """DPM-Solver++(2M): order 2 from one evaluation a step and the one before (arXiv 2211.01095, Algorithm 2)."""

    lower_order_below: int = 10  # steps; shorter runs end in a step of order 1 (the authors' lower_order_final)
    name: ClassVar[str] = "dpmpp_2m"

    @torch.no_grad()
    def from_noise(self, denoiser: Denoise, x_T: Tensor, source: NoiseSource, labels: Tensor | None = None) -> Tensor:
        del source  # deterministic
        x = x_T.double()
        D_prev = sigma_prev = None
        for i, (sigma, sigma_next) in enumerate(pairwise(self.levels(x))):
            D = denoiser(x, sigma, labels)
            if i == self.steps - 1 and self.steps < self.lower_order_below:
                D_prev = None
            x = dpmpp_2m_step(x, D, D_prev, sigma_prev, sigma, sigma_next)
            D_prev, sigma_prev = D, sigma
        return x


@dataclass(frozen=True, eq=False)
class DPMSolverPP2S(GridSampler):
    """DPM-Solver++(2S): order 2 from two evaluations within a step (arXiv 2211.01095, Algorithm 1)."""

    name: ClassVar[str] = "dpmpp_2s"

    @property
    def nfe(self) -> int:
        return 2 * self.steps - int(self.grid[-1] == 0)

    @torch.no_grad()
    def from_noise(self, denoiser: Denoise, x_T: Tensor, source: NoiseSource, labels: Tensor | None = None) -> Tensor:
        del source  # deterministic
        x = x_T.double()
        for i, (sigma, sigma_next) in enumerate(pairwise(self.levels(x))):
            # The way to sigma = 0 has no middle in ln sigma, so the last step of a grid that ends there is Euler's.
            step = euler_step if self.grid[i + 1] == 0 else dpmpp_2s_step
            x = step(denoiser, x, sigma, sigma_next, labels)
        return x
