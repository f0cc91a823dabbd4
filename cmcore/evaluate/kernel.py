"""Kernel distance: the maximum mean discrepancy of KID (arXiv 1801.01401)."""

import torch
from torch import Tensor

from cmcore.evaluate.records import Measured
from cmcore.rng import generator


def polynomial_kernel(x: Tensor, y: Tensor) -> Tensor:
    """k(x, y) = (x . y / D + 1)^3   (arXiv 1801.01401, Sec. 4): (m, D), (n, D) -> (m, n)."""
    return (x @ y.T / x.shape[1] + 1) ** 3


def mmd2(x: Tensor, y: Tensor) -> float:
    """Unbiased estimate of the squared MMD of two samples (m, D), (n, D)   (Gretton et al., 2012, Eq. 3)."""
    m, n = len(x), len(y)
    k_xx, k_yy = polynomial_kernel(x, x), polynomial_kernel(y, y)
    within_x = (k_xx.sum() - k_xx.trace()) / (m * (m - 1))
    within_y = (k_yy.sum() - k_yy.trace()) / (n * (n - 1))
    return float(within_x + within_y - 2 * polynomial_kernel(x, y).mean())


def kid(x: Tensor, y: Tensor, *, subsets: int, size: int, seed: int) -> Measured:
    """Mean and standard deviation of `mmd2` over random subsets, each drawn without replacement.

    Raises:
        ValueError: a sample is smaller than a subset.
    """
    if not 2 <= size <= min(len(x), len(y)):
        raise ValueError(f"eval.kid_size: expected 2 to {min(len(x), len(y))} (the smaller set), got {size}")
    x, y = x.double(), y.double()
    values = []
    for index in range(subsets):
        rng = generator(seed, "kid", index)
        rows, columns = (torch.randperm(len(z), generator=rng)[:size] for z in (x, y))
        values.append(mmd2(x[rows], y[columns]))
    over = torch.tensor(values, dtype=torch.float64)
    return Measured(float(over.mean()), float(over.std(correction=0)), "subsets")
