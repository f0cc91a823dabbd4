"""Frechet distance between Gaussians, its spread, and its limit for infinitely many samples."""

import math

import torch
from torch import Tensor

from cmcore.evaluate.moments import Moments
from cmcore.evaluate.records import Measured
from cmcore.rng import generator

_BLOCKS = 10


def covariance_root(cov: Tensor) -> Tensor:
    """Symmetric square root of a covariance (D, D); eigenvalues below rounding count as zero."""
    values, vectors = torch.linalg.eigh((cov + cov.T) / 2)
    values = torch.where(values > values[-1] * len(values) * torch.finfo(values.dtype).eps, values, 0.0)
    return (vectors * values.sqrt()) @ vectors.T


def frechet_distance(a: Moments, b: Moments, root: Tensor | None = None, *, clip: bool = True) -> float:
    """|mu_a - mu_b|^2 + tr(S_a + S_b - 2 (S_a S_b)^{1/2})   (Dowson and Landau, 1982; arXiv 1706.08500, Eq. 6).

    The trace of the product's root is the nuclear norm of S_a^{1/2} S_b^{1/2}, exact for singular covariances too.

    Args:
        root: `covariance_root(b.cov)` if known.
        clip: return 0 where rounding gives less.
    """
    if a.mean.shape != b.mean.shape:
        raise ValueError(f"moments: expected equal dimensions, got {len(a.mean)} and {len(b.mean)}")
    root = covariance_root(b.cov) if root is None else root
    overlap = torch.linalg.svdvals(covariance_root(a.cov) @ root).sum()
    distance = (a.mean - b.mean).square().sum() + a.cov.trace() + b.cov.trace() - 2 * overlap
    return max(0.0, float(distance)) if clip else float(distance)


def frechet_spread(features: Tensor, reference: Moments, replicates: int, seed: int) -> float:
    """Standard deviation of the distance over bootstrap resamples of the features (B, D)."""
    if replicates < 2:
        return 0.0
    root, n = covariance_root(reference.cov), len(features)
    distances = []
    for index in range(replicates):
        rows = torch.randint(n, (n,), generator=generator(seed, "bootstrap", index))
        resampled = Moments.weighted(features, torch.bincount(rows, minlength=n))
        distances.append(frechet_distance(resampled, reference, root))
    return float(torch.tensor(distances, dtype=torch.float64).std())


def frechet(moments: Moments, features: Tensor, reference: Moments, replicates: int, seed: int) -> Measured:
    """The distance of samples from the reference, with its bootstrap spread if all features were kept."""
    value = frechet_distance(moments, reference)
    if len(features) < moments.count:
        return Measured(value, 0.0, "bootstrap")
    return Measured(value, frechet_spread(features, reference, replicates, seed), "bootstrap")


def frechet_infinity(features: Tensor, reference: Moments, seed: int) -> Measured:
    """The distance of infinitely many samples from the reference, from the features (N, D) of N samples.

    The distance of N samples is linear in 1/N, with the limit as its intercept (Chong and Forsyth, arXiv 1911.07023).
    The two points of the line are all samples, and the mean over all but one of 10 random blocks: this is the grouped
    jackknife (Quenouille, 1956), which also gives the standard error. The bias that the finite reference causes
    remains, and the estimate of a small distance may be negative.
    """
    N = len(features)
    g = min(_BLOCKS, N)
    if g < 2:
        raise ValueError(f"samples: expected at least 2, got {N}")
    order = torch.randperm(N, generator=generator(seed, "jackknife"))
    blocks = [Moments.of(features[rows]) for rows in order.tensor_split(g)]
    root = covariance_root(reference.cov)
    whole = frechet_distance(Moments.total(blocks), reference, root, clip=False)
    left = [Moments.total(block for other, block in enumerate(blocks) if other != out) for out in range(g)]
    without = torch.tensor([frechet_distance(part, reference, root, clip=False) for part in left], dtype=torch.float64)
    error = math.sqrt((g - 1) / g * float((without - without.mean()).square().sum()))
    return Measured(g * whole - (g - 1) * float(without.mean()), error, "jackknife")
