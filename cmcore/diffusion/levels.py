"""Densities of noise levels for training, sampled through their inverse CDF so that randomness stays addressed.

`sample` maps uniform numbers u (B,) in [0, 1) to sigma (B,), both float64; `cdf` is its inverse.
"""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

# torch.rand draws multiples of 2^-53, zero among them; half a step up, the normal quantile of zero is finite.
SMALLEST_UNIFORM = 2.0**-54


class Levels(Protocol):
    """A density of noise levels."""

    def sample(self, u: Tensor) -> Tensor: ...

    def cdf(self, sigma: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class LogNormal:
    """ln sigma ~ N(P_mean, P_std^2) (EDM, arXiv 2206.00364, Table 1)."""

    P_mean: float = -1.2
    P_std: float = 1.2

    def __post_init__(self) -> None:
        _positive("P_std", self.P_std)

    def sample(self, u: Tensor) -> Tensor:
        """The u-quantile."""
        z = torch.special.ndtri(_double(u).clamp(min=SMALLEST_UNIFORM))
        return (self.P_mean + self.P_std * z).exp()

    def cdf(self, sigma: Tensor) -> Tensor:
        """P(level <= sigma)."""
        return torch.special.ndtr((_double(sigma).log() - self.P_mean) / self.P_std)


@dataclass(frozen=True)
class TruncatedLogNormal:
    """ln sigma ~ N(P_mean, P_std^2), conditioned on lo <= sigma <= hi."""

    P_mean: float
    P_std: float
    lo: float
    hi: float

    def __post_init__(self) -> None:
        _positive("P_std", self.P_std)
        _ordered(self.lo, self.hi)
        if not self._mass()[1] > 0:
            raise ValueError(f"TruncatedLogNormal: expected some probability between lo and hi, got none in {self}")

    def _mass(self) -> tuple[Tensor, Tensor]:
        """The parent's probability below lo, and between lo and hi."""
        below, upto = LogNormal(self.P_mean, self.P_std).cdf(torch.tensor([self.lo, self.hi], dtype=torch.float64))
        return below, upto - below

    def sample(self, u: Tensor) -> Tensor:
        """The u-quantile."""
        below, mass = self._mass()
        return LogNormal(self.P_mean, self.P_std).sample(below + mass * _double(u)).clamp(self.lo, self.hi)

    def cdf(self, sigma: Tensor) -> Tensor:
        """P(level <= sigma)."""
        below, mass = self._mass()
        return ((LogNormal(self.P_mean, self.P_std).cdf(sigma) - below) / mass).clamp(0, 1)


@dataclass(frozen=True)
class TruncatedStudentT:
    """ln sigma ~ scale t_df, conditioned on lo <= sigma <= hi (TCM, arXiv 2410.14895). Heavy tails for small df.

    With ln sigma = scale sqrt(df) sinh(v) the density of v is cosh(v)^-df, smooth whatever df is, so that a table of
    its integral has about 9 digits.
    """

    df: float
    scale: float
    lo: float
    hi: float

    def __post_init__(self) -> None:
        _positive("df", self.df)
        _positive("scale", self.scale)
        _ordered(self.lo, self.hi)

    def _v(self, sigma: Tensor) -> Tensor:
        return torch.asinh(_double(sigma).log() / (self.scale * self.df**0.5))

    def _table(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Some v from the lower end to the upper, and the probability below them."""
        first, last = self._v(torch.tensor([self.lo, self.hi], dtype=torch.float64)).tolist()
        v = torch.linspace(first, last, 8193, dtype=torch.float64, device=device)
        p = torch.cumulative_trapezoid(torch.cosh(v) ** -self.df, v)
        p = torch.cat([p.new_zeros(1), p])
        return v, p / p[-1]

    def sample(self, u: Tensor) -> Tensor:
        """The u-quantile."""
        v, p = self._table(u.device)
        return (self.scale * self.df**0.5 * torch.sinh(_interpolated(_double(u), p, v))).exp().clamp(self.lo, self.hi)

    def cdf(self, sigma: Tensor) -> Tensor:
        """P(level <= sigma)."""
        v, p = self._table(sigma.device)
        return _interpolated(self._v(sigma).clamp(v[0], v[-1]), v, p)


@dataclass(frozen=True)
class KarrasUniform:
    """sigma^(1/rho) is uniform: the Karras grid's continuous limit (arXiv 2303.01469, continuous losses)."""

    sigma_min: float
    sigma_max: float
    rho: float = 7.0

    def __post_init__(self) -> None:
        _positive("rho", self.rho)
        _ordered(self.sigma_min, self.sigma_max)

    def sample(self, u: Tensor) -> Tensor:
        """The u-quantile."""
        lo, hi = self.sigma_min ** (1 / self.rho), self.sigma_max ** (1 / self.rho)
        return ((lo + (hi - lo) * _double(u)) ** self.rho).clamp(self.sigma_min, self.sigma_max)

    def cdf(self, sigma: Tensor) -> Tensor:
        """P(level <= sigma)."""
        lo, hi = self.sigma_min ** (1 / self.rho), self.sigma_max ** (1 / self.rho)
        return ((_double(sigma) ** (1 / self.rho) - lo) / (hi - lo)).clamp(0, 1)


def discretised_lognormal(grid: Tensor, P_mean: float = -1.1, P_std: float = 2.0) -> Tensor:
    """Probabilities (N-1,) of an ascending grid's intervals under a lognormal (iCT, arXiv 2310.14189, sec. 3.5).

    Renormalised to the grid, so call it again whenever the grid changes.
    """
    _positive("P_std", P_std)
    if grid.ndim != 1 or len(grid) < 2 or not bool((grid.diff() > 0).all()):
        raise ValueError(f"discretised_lognormal: expected an ascending grid of at least 2 levels, got {grid}")
    p = torch.erf((_double(grid).log() - P_mean) / (2**0.5 * P_std)).diff()
    if not p.sum() > 0:
        raise ValueError(f"discretised_lognormal: expected probability on the grid, got none at {P_mean=}, {P_std=}")
    return p / p.sum()


def sample_index(p: Tensor, u: Tensor) -> Tensor:
    """The index whose share of [0, 1) holds u: probabilities (M,) and uniform u (B,) -> int64 (B,)."""
    edges = p.cumsum(0)
    # Scaled by its own rounded end, the last edge is exactly 1, above every u: no index of probability 0 is drawn.
    return torch.searchsorted(edges / edges[-1], _double(u), right=True).clamp(max=len(p) - 1)


def _interpolated(x: Tensor, xs: Tensor, ys: Tensor) -> Tensor:
    """The line through the points (xs, ys), xs ascending, at x (B,)."""
    i = torch.searchsorted(xs, x, right=True).clamp(1, len(xs) - 1)
    share = (x - xs[i - 1]) / (xs[i] - xs[i - 1])
    return torch.lerp(ys[i - 1], ys[i], share)


def _double(v: Tensor) -> Tensor:
    return v.to(torch.float64)


def _positive(name: str, value: float) -> None:
    if not value > 0:
        raise ValueError(f"{name}: expected a positive number, got {value}")


def _ordered(lo: float, hi: float) -> None:
    if not 0 < lo < hi:
        raise ValueError(f"noise levels: expected 0 < lower < upper, got {lo} and {hi}")
