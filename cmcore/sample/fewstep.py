"""One-step and multistep sampling of consistency models."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from cmcore.diffusion.ode import Denoise
from cmcore.rng import NoiseSource
from cmcore.sample.base import LevelSampler


def _unchanged(x: Tensor) -> Tensor:
    return x


@dataclass(frozen=True)
class Multistep(LevelSampler):
    """Alternate f with re-noising to the next level tau (arXiv 2303.01469, Algorithm 1).

    Args:
        levels: descending from sigma_max: (sigma_max,) samples in one step, (sigma_max, tau) in two.
        sigma_min: f lands at this level, so only sqrt(tau^2 - sigma_min^2) of noise is missing. ECT's code adds all
            of tau: that is sigma_min = 0.
        clamp: bring every f into [-1, 1], as the authors' PyTorch sampler does.
    """

    clamp: bool = False
    name: ClassVar[str] = "multistep"

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
