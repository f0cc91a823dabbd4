"""One-step and multistep sampling of consistency models."""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

import torch
from torch import Tensor

from cmcore.diffusion.ode import Denoise
from cmcore.rng import NoiseSource
from cmcore.sample.base import Sampler


def _unchanged(x: Tensor) -> Tensor:
    return x


@dataclass(frozen=True)
class Multistep(Sampler):
    """Alternate f with re-noising to the next level tau (arXiv 2303.01469, Algorithm 1).

    Args:
        levels: descending from sigma_max: (sigma_max,) samples in one step, (sigma_max, tau) in two.
        sigma_min: f lands at this level, so only sqrt(tau^2 - sigma_min^2) of noise is missing. ECT's code adds all
            of tau: that is sigma_min = 0.
        clamp: bring every f into [-1, 1], as the authors' PyTorch sampler does.
    """

    levels: tuple[float, ...]
    sigma_min: float
    clamp: bool = False
    name: ClassVar[str] = "multistep"

    def __post_init__(self) -> None:
        bounds = (float("inf"), *self.levels, self.sigma_min)
        if not self.levels or self.sigma_min < 0 or not all(a > b for a, b in pairwise(bounds)):
            raise ValueError(
                "Multistep: expected one or more strictly descending levels above sigma_min >= 0, got levels "
                f"{self.levels} and sigma_min {self.sigma_min}"
            )

    @property
    def nfe(self) -> int:
        return len(self.levels)

    @property
    def noise_levels(self) -> tuple[float, ...]:
        return self.levels

    @property
    def sigma_max(self) -> float:
        return self.levels[0]

    def from_noise(self, denoiser: Denoise, x_T: Tensor, source: NoiseSource, labels: Tensor | None = None) -> Tensor:
        return self.refine(denoiser, x_T, source, labels)

    @torch.no_grad()
    def refine(
        self,
        denoiser: Denoise,
        x: Tensor,
        source: NoiseSource,
        labels: Tensor | None = None,
        project: Callable[[Tensor], Tensor] = _unchanged,
    ) -> Tensor:
        """The loop, with `project` applied to every f: how editing (Algorithm 4) keeps what is known."""
        x = x.double()
        for i, tau in enumerate(self.levels):
            if i > 0:
                x = x + (tau**2 - self.sigma_min**2) ** 0.5 * source.normal(x.shape[1:])
            x = denoiser(x, torch.full((len(x),), tau, dtype=torch.float64, device=x.device), labels)
            x = project(x.clamp(-1, 1) if self.clamp else x)
        return x
