"""Paths from data to noise: x_t = alpha(t) x_0 + sigma(t) z, time t (B,) growing with noise.

Each path keeps its paper's convention for the noise: z ~ N(0, noise_std^2 I). The level of a point is the standard
deviation of its noise relative to its signal, noise_std sigma / alpha: the sigma of the same point in VE time.
"""

from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from cmcore.tensors import expand_like


class PathPoint(NamedTuple):
    """The coefficients of a path at times t, and their derivatives in t; each (B,), in the precision of t."""

    alpha: Tensor
    sigma: Tensor
    d_alpha: Tensor
    d_sigma: Tensor

    def mix(self, x0: Tensor, z: Tensor) -> Tensor:
        """x_t = alpha x_0 + sigma z for data and noise (B, ...)."""
        return expand_like(self.alpha, x0) * x0 + expand_like(self.sigma, z) * z

    def velocity(self, x0: Tensor, z: Tensor) -> Tensor:
        """dx_t/dt = alpha' x_0 + sigma' z for data and noise (B, ...)."""
        return expand_like(self.d_alpha, x0) * x0 + expand_like(self.d_sigma, z) * z


class Path(Protocol):
    """The coefficients at a time, and the map between times and noise levels."""

    @property
    def noise_std(self) -> float:
        """Standard deviation of z."""
        ...

    def at(self, t: Tensor) -> PathPoint: ...

    def level(self, t: Tensor) -> Tensor:
        """The VE level sigma (B,) of the point at time t (B,)."""
        ...

    def time(self, level: Tensor) -> Tensor:
        """The inverse of `level`."""
        ...


@dataclass(frozen=True)
class VE:
    """Variance exploding, of EDM and the consistency models: x_t = x_0 + t z (arXiv 2206.00364, sec. 3)."""

    noise_std: float = 1.0

    def at(self, t: Tensor) -> PathPoint:
        one, zero = torch.ones_like(t), torch.zeros_like(t)
        return PathPoint(alpha=one, sigma=t, d_alpha=zero, d_sigma=one)

    def level(self, t: Tensor) -> Tensor:
        return t

    def time(self, level: Tensor) -> Tensor:
        return level


@dataclass(frozen=True)
class TrigFlow:
    """x_t = cos t x_0 + sin t z with z ~ N(0, sigma_data^2 I), t in [0, pi/2] (arXiv 2410.11081, sec. 3.1)."""

    noise_std: float  # sigma_data

    def at(self, t: Tensor) -> PathPoint:
        cos, sin = torch.cos(t), torch.sin(t)
        return PathPoint(alpha=cos, sigma=sin, d_alpha=-sin, d_sigma=cos)

    def level(self, t: Tensor) -> Tensor:
        return self.noise_std * torch.tan(t)

    def time(self, level: Tensor) -> Tensor:
        return torch.atan(level / self.noise_std)


@dataclass(frozen=True)
class Linear:
    """Rectified flow: x_t = (1 - t) x_0 + t z, t in [0, 1] (arXiv 2209.03003; the paper's t runs the other way)."""

    noise_std: float = 1.0

    def at(self, t: Tensor) -> PathPoint:
        one = torch.ones_like(t)
        return PathPoint(alpha=1 - t, sigma=t, d_alpha=-one, d_sigma=one)

    def level(self, t: Tensor) -> Tensor:
        return t / (1 - t)

    def time(self, level: Tensor) -> Tensor:
        return level / (1 + level)
