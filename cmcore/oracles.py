"""Data distributions whose denoiser is known exactly: ground truth for tests, and teachers without training.

All are in VE time, x = x_0 + sigma z, for tensors x (B, ...) and levels sigma (B,). Nothing here is learned or random.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from cmcore.tensors import expand_like


class Oracle(Protocol):
    """A distribution with a known denoiser and probability flow."""

    def denoise(self, x: Tensor, sigma: Tensor) -> Tensor:
        """E[x_0 | x], the optimal D(x, sigma)."""
        ...

    def flow(self, x: Tensor, sigma: Tensor, sigma_next: Tensor) -> Tensor:
        """The probability-flow ODE's solution at sigma_next from x at sigma, both (B,)."""
        ...


@dataclass(frozen=True)
class Gaussian:
    """N(mean, std^2), independent pixels; mean and std are numbers or tensors that broadcast against one image.

    With mean 0 and std sigma_data, EDM's optimal network output F is zero.
    """

    mean: Tensor | float
    std: Tensor | float

    def sample(self, z: Tensor) -> Tensor:
        """Data from standard normal z (B, ...)."""
        return self.mean + self.std * z

    def denoise(self, x: Tensor, sigma: Tensor) -> Tensor:
        """(s^2 x + sigma^2 mean) / (s^2 + sigma^2)."""
        s2, sigma2 = self.std**2, expand_like(sigma**2, x)
        return (s2 * x + sigma2 * self.mean) / (s2 + sigma2)

    def score(self, x: Tensor, sigma: Tensor) -> Tensor:
        """Gradient of the log density of x at level sigma."""
        return (self.mean - x) / (self.std**2 + expand_like(sigma**2, x))

    def flow(self, x: Tensor, sigma: Tensor, sigma_next: Tensor) -> Tensor:
        """The ODE scales x - mean by the ratio of the standard deviations at the two levels."""
        s2 = self.std**2
        ratio = (s2 + expand_like(sigma_next**2, x)) / (s2 + expand_like(sigma**2, x))
        return self.mean + (x - self.mean) * ratio**0.5

    def consistency(self, x: Tensor, sigma: Tensor, epsilon: float) -> Tensor:
        """The exact consistency function: the flow's end at epsilon."""
        return self.flow(x, sigma, torch.full_like(sigma, epsilon))


@dataclass(frozen=True)
class GaussianMixture:
    """sum_k weights_k N(means_k, std_k^2 I): weights (K,), means (K, ...), std (K,)."""

    weights: Tensor
    means: Tensor
    std: Tensor
    steps: int = 200  # of the numerical flow

    def __post_init__(self) -> None:
        K = len(self.means)
        if self.weights.shape != (K,) or self.std.shape != (K,):
            raise ValueError(
                f"GaussianMixture: expected weights and std of shape ({K},), one per mean, got "
                f"{tuple(self.weights.shape)} and {tuple(self.std.shape)}"
            )

    def denoise(self, x: Tensor, sigma: Tensor) -> Tensor:
        """sum_k p(k | x) (s_k^2 x + sigma^2 mean_k) / (s_k^2 + sigma^2)."""
        s2, sigma2 = self.std.to(x.dtype) ** 2, sigma.to(x.dtype)[:, None] ** 2  # (K,), (B, 1)
        means = self.means.to(x.dtype).flatten(1)
        variance = s2 + sigma2  # (B, K)
        distance2 = torch.cdist(x.flatten(1), means, compute_mode="donot_use_mm_for_euclid_dist") ** 2
        D = means.shape[1]
        log_p = self.weights.to(x.dtype).log() - distance2 / (2 * variance) - D / 2 * variance.log()
        p = log_p.softmax(1)
        own, others = (p * s2 / variance).sum(1), (p * sigma2 / variance) @ means
        return expand_like(own, x) * x + others.reshape(x.shape)

    def score(self, x: Tensor, sigma: Tensor) -> Tensor:
        """Gradient of the log density of x at level sigma, by Tweedie's formula."""
        return (self.denoise(x, sigma) - x) / expand_like(sigma**2, x)

    def flow(self, x: Tensor, sigma: Tensor, sigma_next: Tensor) -> Tensor:
        """The ODE has no closed form here: classical Runge-Kutta, order 4, in ln sigma; sigma_next > 0."""
        return _runge_kutta(self.denoise, x, sigma, sigma_next, self.steps)

    def consistency(self, x: Tensor, sigma: Tensor, epsilon: float) -> Tensor:
        """The consistency function, as exact as `flow`."""
        return self.flow(x, sigma, torch.full_like(sigma, epsilon))


def FiniteData(images: Tensor, steps: int = 200) -> GaussianMixture:  # noqa: N802 (a distribution, like its neighbours)
    """The empirical distribution of images (N, ...): its optimal denoiser is a softmax-weighted mean of the images.

    A network of unlimited capacity would learn it: memorisation (EDM, arXiv 2206.00364, App. B.3).
    """
    n = len(images)
    return GaussianMixture(images.new_full((n,), 1 / n), images, images.new_zeros(n), steps)


def as_denoiser(oracle: Oracle) -> Callable[[Tensor, Tensor, Tensor | None], Tensor]:
    """The exact diffusion model of the oracle, called like a `Denoiser`: (x, sigma, labels), labels ignored."""

    def denoiser(x: Tensor, sigma: Tensor, labels: Tensor | None = None) -> Tensor:
        del labels
        return oracle.denoise(x, sigma)

    return denoiser


def as_consistency(oracle: Oracle, epsilon: float) -> Callable[[Tensor, Tensor, Tensor | None], Tensor]:
    """The exact consistency model of the oracle, called like a `Denoiser`: (x, sigma, labels), labels ignored."""

    def consistency(x: Tensor, sigma: Tensor, labels: Tensor | None = None) -> Tensor:
        del labels
        return oracle.flow(x, sigma, torch.full_like(sigma, epsilon))

    return consistency


def _runge_kutta(
    denoise: Callable[[Tensor, Tensor], Tensor], x: Tensor, sigma: Tensor, sigma_next: Tensor, steps: int
) -> Tensor:
    """Integrate dx/dl = x - D(x, e^l), l = ln sigma: smooth over all noise levels, so equal steps serve."""
    if bool((sigma_next <= 0).any()):
        raise ValueError(f"flow: expected sigma_next > 0 where there is no closed form, got {sigma_next.min().item()}")
    l, h = sigma.log(), (sigma_next / sigma).log() / steps
    H = expand_like(h, x)

    def slope(x: Tensor, l: Tensor) -> Tensor:
        return x - denoise(x, l.exp())

    for _ in range(steps):
        k1 = slope(x, l)
        k2 = slope(x + H / 2 * k1, l + h / 2)
        k3 = slope(x + H / 2 * k2, l + h / 2)
        k4 = slope(x + H * k3, l + h)
        x, l = x + H / 6 * (k1 + 2 * k2 + 2 * k3 + k4), l + h
    return x
