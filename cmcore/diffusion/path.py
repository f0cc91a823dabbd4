"""Paths from data to noise: x_t = alpha(t) x_0 + sigma(t) z with z ~ N(0, I). Time t (B,) grows with noise."""

from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor


class PathPoint(NamedTuple):
    """A path's coefficients at times t, and their derivatives in t; each (B,)."""

    alpha: Tensor
    sigma: Tensor
    d_alpha: Tensor
    d_sigma: Tensor


class Path(Protocol):
    """A path: four quantities at once, and the way back from the noise-to-signal ratio."""

    def at(self, t: Tensor) -> PathPoint: ...

    def time_of_ratio(self, ratio: Tensor) -> Tensor:
        """The time where sigma/alpha is `ratio`, which is the VE level of the same point."""
        ...


@dataclass(frozen=True)
class VE:
    """Variance exploding, EDM's and the consistency models' choice: x_t = x_0 + t z (arXiv 2206.00364, sec. 3)."""

    def at(self, t: Tensor) -> PathPoint:
        one, zero = torch.ones_like(t), torch.zeros_like(t)
        return PathPoint(alpha=one, sigma=t, d_alpha=zero, d_sigma=one)

    def time_of_ratio(self, ratio: Tensor) -> Tensor:
        return ratio


@dataclass(frozen=True)
class TrigFlow:
    """x_t = cos t x_0 + sin t (sigma_data z), t in [0, pi/2] (arXiv 2410.11081, sec. 3.1)."""

    sigma_data: float

    def at(self, t: Tensor) -> PathPoint:
        cos, sin = torch.cos(t), torch.sin(t)
        return PathPoint(alpha=cos, sigma=self.sigma_data * sin, d_alpha=-sin, d_sigma=self.sigma_data * cos)

    def time_of_ratio(self, ratio: Tensor) -> Tensor:
        return torch.atan(ratio / self.sigma_data)


@dataclass(frozen=True)
class Linear:
    """Rectified flow: x_t = (1 - t) x_0 + t z, t in [0, 1] (arXiv 2209.03003; the paper's t runs the other way)."""

    def at(self, t: Tensor) -> PathPoint:
        one = torch.ones_like(t)
        return PathPoint(alpha=1 - t, sigma=t, d_alpha=-one, d_sigma=one)

    def time_of_ratio(self, ratio: Tensor) -> Tensor:
        return ratio / (1 + ratio)
