"""Sampling with maps between any two noise levels."""

from dataclasses import dataclass, field
from itertools import pairwise
from typing import ClassVar

import torch
from torch import Tensor

from cmcore.diffusion.levels import Levels
from cmcore.diffusion.ode import Denoise
from cmcore.diffusion.precond import with_inputs
from cmcore.rng import NoiseSource
from cmcore.sample.base import LevelSampler


@dataclass(frozen=True)
class GammaSampling(LevelSampler):
    """Jumps below the next level, noise back up to it (CTM, arXiv 2310.02279, Alg. 3).

    With exact maps every gamma keeps the distribution: gamma = 0 is deterministic, gamma = 1 is the multistep sampling
    of consistency models. The denoiser takes the level where a jump ends as the input "s".

    Args:
        levels: descending from sigma_max; the last jump ends at sigma_min.
        sigma_min: the lowest level.
        gamma: share of noise that is drawn anew, in [0, 1].
    """

    gamma: float = 0.0
    name: ClassVar[str] = "gamma"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.gamma <= 1:
            raise ValueError(f"GammaSampling: expected gamma in [0, 1], got {self.gamma}")

    def landing(self, level: float) -> float:
        """The level s <= `level` where a jump ends before noise brings it to `level`."""
        return (1 - self.gamma**2) ** 0.5 * (level - self.sigma_min) + self.sigma_min

    @torch.no_grad()
    def from_noise(self, denoiser: Denoise, x_T: Tensor, source: NoiseSource, labels: Tensor | None = None) -> Tensor:
        x = x_T.double()
        for level, after in pairwise((*self.levels, self.sigma_min)):
            end = self.landing(after)
            t, s = (torch.full((len(x),), v, dtype=torch.float64, device=x.device) for v in (level, end))
            x = denoiser(x, t, with_inputs(labels, s=s))
            if end < after:
                x = x + (after**2 - end**2) ** 0.5 * source.normal(x.shape[1:])
        return x


@dataclass(frozen=True)
class StrategicStochastic(GammaSampling):
    """The same with gamma as a share of the time below the next level (TCD, arXiv 2402.19159, strategic sampling).

    Args:
        levels: descending from sigma_max; the last jump ends at sigma_min.
        sigma_min: the lowest level.
        gamma: a jump ends at (1 - gamma) of the time of the next level, in [0, 1].
        times: its `cdf` is the time of a level, from 0 at sigma_min to 1 at sigma_max.
    """

    times: Levels = field(kw_only=True)
    name: ClassVar[str] = "strategic"

    def landing(self, level: float) -> float:
        """The level s <= `level` where a jump ends before noise brings it to `level`."""
        time = self.times.cdf(torch.tensor(level, dtype=torch.float64))
        return float(self.times.sample((1 - self.gamma) * time)) if self.gamma else level
