"""The protocol of samplers: maps from noise to images, in float64, with a known number of function evaluations.

Calling convention: `sampler(denoiser, (C, H, W), source, labels)` first draws the initial noise sigma_max z: under one
seed every sampler starts from the same noise. Images come out unclamped, on the scale of the training data.
"""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar, Protocol

import torch
from torch import Tensor

from cmcore.diffusion.ode import Denoise
from cmcore.rng import NoiseSource


class Sampler(Protocol):
    """(denoiser, noise) -> images. A sampler implements the abstract members and inherits the call."""

    name: ClassVar[str]
    """The solver's name, as tables print it."""

    @property
    @abstractmethod
    def nfe(self) -> int:
        """Number of function evaluations: how often one image passes through the denoiser."""
        ...

    @property
    @abstractmethod
    def sigma_max(self) -> float:
        """The level of the initial noise."""
        ...

    @property
    def noise_levels(self) -> tuple[float, ...]:
        """The levels it denoises from, where they are a free choice that a record has to state; else none."""
        return ()

    @abstractmethod
    def from_noise(self, denoiser: Denoise, x_T: Tensor, source: NoiseSource, labels: Tensor | None = None) -> Tensor:
        """Images from the initial state x_T (B, C, H, W), which has level sigma_max; `source` feeds later noise."""
        ...

    def __call__(
        self, denoiser: Denoise, shape: Sequence[int], source: NoiseSource, labels: Tensor | None = None
    ) -> Tensor:
        """Images (B, *shape) in float64, one for every generator in `source`."""
        return self.from_noise(denoiser, self.sigma_max * source.normal(shape), source, labels)


@dataclass(frozen=True)
class LevelSampler(Sampler):
    """A sampler that denoises from each of its levels once.

    Args:
        levels: strictly descending from sigma_max, all above sigma_min.
        sigma_min: the lowest level, at least 0.
    """

    levels: tuple[float, ...]
    sigma_min: float

    def __post_init__(self) -> None:
        bounds = (float("inf"), *self.levels, self.sigma_min)
        if not self.levels or self.sigma_min < 0 or not all(a > b for a, b in pairwise(bounds)):
            raise ValueError(
                f"{type(self).__name__}: expected one or more strictly descending levels above sigma_min >= 0, got "
                f"levels {self.levels} and sigma_min {self.sigma_min}"
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


def check_levels(levels: Tensor, owner: str) -> None:
    """Refuse what is not at least two finite, strictly descending, non-negative levels."""
    ok = levels.ndim == 1 and len(levels) >= 2 and bool(torch.isfinite(levels).all() and (levels.diff() < 0).all())
    if not (ok and levels[-1] >= 0):
        raise ValueError(
            f"{owner}: expected a strictly descending grid of at least 2 levels >= 0, got {levels.tolist()}"
        )
