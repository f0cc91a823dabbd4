"""Post-hoc EMA: any averaging profile as a combination of stored ones (EDM2, arXiv 2312.02696, sec. 3 and App. C).

A profile says how much the weights at each moment of the training count in an average. Profiles of power functions that
were stored at a few moments span a space; the best approximation of a wanted profile in it has the same weights as the
best approximation of the wanted average. Times are images seen.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cmcore.train.ema import power_exponent


@dataclass(frozen=True)
class PowerProfile:
    """p(tau) = (gamma + 1) tau^gamma / images^(gamma + 1) on [0, images] (Eq. 7)."""

    gamma: float
    images: float

    @classmethod
    def of(cls, std: float, images: float) -> "PowerProfile":
        """The profile whose width is the share `std` of the training so far."""
        return cls(power_exponent(std), images)

    def density(self, tau: NDArray[np.float64]) -> NDArray[np.float64]:
        """p at some times."""
        inside = (tau >= 0) & (tau <= self.images)
        ratio = np.where(inside, tau, 0.0) / self.images
        return np.where(inside, (self.gamma + 1) / self.images * ratio**self.gamma, 0.0)

    def inner(self, other: "PowerProfile") -> float:
        """The integral of the product with another power profile (Eq. 128, arranged so that no power overflows)."""
        least = min(self.images, other.images)
        a, b = self.gamma + 1, other.gamma + 1
        return a * b / (a + b - 1) / least * (least / self.images) ** a * (least / other.images) ** b


@dataclass(frozen=True)
class HalfLifeProfile:
    """The profile of EDM's average: its half-life is the smaller of `half_life` and the share `ramp` of images seen.

    While the ramp governs, until `half_life / ramp` images, the profile is the power function with
    gamma + 1 = ln 2 / ramp; afterwards it is an exponential. Without a ramp the share exp(-rate images) stays with the
    initial weights, which lie outside of what power functions describe.
    """

    half_life: float
    ramp: float
    images: float

    @property
    def turn(self) -> float:
        """Where the ramp ends."""
        return self.half_life / self.ramp if self.ramp else 0.0

    @property
    def head(self) -> PowerProfile | None:
        """The power function before the turn, or all of it where the turn is not reached."""
        return PowerProfile(math.log(2) / self.ramp - 1, min(self.turn, self.images)) if self.ramp else None

    def density(self, tau: NDArray[np.float64]) -> NDArray[np.float64]:
        """p at some times."""
        rate, start = math.log(2) / self.half_life, min(self.turn, self.images)
        past = math.exp(-rate * (self.images - start))
        head = past * self.head.density(tau) if self.head else np.zeros_like(tau)
        tail = rate * np.exp(-rate * (self.images - np.minimum(tau, self.images)))
        return np.where((tau > start) & (tau <= self.images), tail, head)

    def inner(self, other: PowerProfile) -> float:
        """The integral of the product with a power profile."""
        rate, start = math.log(2) / self.half_life, min(self.turn, self.images)
        product = math.exp(-rate * (self.images - start)) * self.head.inner(other) if self.head else 0.0
        end = min(self.images, other.images)
        for sign, edge in ((1, end), (-1, start)):
            if start < end and edge > 0:
                # int_0^edge p(tau) e^(-rate (edge - tau)) dtau, moved to the target's time.
                share = (edge / other.images) ** (other.gamma + 1)
                fading = rate * math.exp(-rate * (self.images - edge))
                product += sign * fading * share * _faded_mean(other.gamma + 1, rate * edge)
        return product


def _faded_mean(a: float, x: float) -> float:
    """int_0^1 a u^(a-1) e^(-x (1 - u)) du = e^-x M(a, a + 1, x), as the mean of a/(a + K) over a Poisson number K."""
    k = np.arange(int(x + 12 * math.sqrt(x)) + 40, dtype=np.float64)
    if x == 0:
        return 1.0
    ln_factorial = np.concatenate([[0.0], np.cumsum(np.log(k[1:]))])
    return float(np.sum(np.exp(k * math.log(x) - x - ln_factorial) * a / (a + k)))


def combination(
    stored: Sequence[PowerProfile], target: PowerProfile | HalfLifeProfile, *, mass: bool = True
) -> NDArray[np.float64]:
    """The weights x (len(stored),) that minimise the L2 distance of sum_i x_i p_i to the target (App. C, Eq. 131).

    Args:
        stored: the profiles that there are.
        target: the profile that is wanted.
        mass: hold sum_i x_i at 1 while minimising. Without it the solution is the paper's (Algorithm 3), which loses a
            few percent of the mass where snapshots are few, and with it of every weight; the authors' phema.py
            divides that solution by its sum.

    Returns:
        One number per stored profile.

    Raises:
        ValueError: there is nothing stored, or the target lies behind the last stored profile.
    """
    last = max((profile.images for profile in stored), default=0.0)
    if not 0 < target.images <= last:
        raise ValueError(f"images: expected a moment up to the last stored profile, {last:g}, got {target.images:g}")
    # Profiles of unit norm, so that the small ones are not lost among the large.
    norms = np.array([math.sqrt(profile.inner(profile)) for profile in stored])
    A = np.array([[a.inner(b) for b in stored] for a in stored]) / norms / norms[:, None]
    b = np.array([target.inner(profile) for profile in stored]) / norms
    if mass:  # a Lagrange multiplier; every stored profile has mass one
        A = np.block([[A, (1 / norms)[:, None]], [1 / norms, np.zeros(1)]])
        b = np.append(b, 1.0)
    return np.linalg.lstsq(A, b, rcond=1e-13)[0][: len(norms)] / norms


def misfit(
    stored: Sequence[PowerProfile],
    weights: NDArray[np.float64],
    target: PowerProfile | HalfLifeProfile,
    grid: int = 20_000,
) -> float:
    """The L2 distance of the combination to the target, relative to the target's norm: how far it may be trusted."""
    edges = np.linspace(0.0, max(target.images, *(profile.images for profile in stored)), grid + 1)
    tau = (edges[1:] + edges[:-1]) / 2
    wanted = target.density(tau)
    made = sum((x * p.density(tau) for x, p in zip(weights, stored, strict=True)), np.zeros_like(tau))
    return float(np.linalg.norm(made - wanted) / np.linalg.norm(wanted))


def combine(weights: Iterable[float], stored: Iterable[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """sum_i x_i of named tensors, added in float64 (the weights have both signs) and returned in the tensors' dtype."""
    total: dict[str, Tensor] = {}
    dtypes: dict[str, torch.dtype] = {}
    for x, named in zip(weights, stored, strict=True):
        for name, tensor in named.items():
            total[name] = total.get(name, torch.zeros(())) + float(x) * tensor.to(torch.float64)
            dtypes[name] = tensor.dtype
    return {name: tensor.to(dtypes[name]) for name, tensor in total.items()}
