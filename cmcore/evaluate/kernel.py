"""Kernel distance: the maximum mean discrepancy of KID (arXiv 1801.01401)."""

from collections.abc import Iterable, Iterator

import numpy as np
import torch
from torch import Tensor

from cmcore.evaluate.records import Measured
from cmcore.rng import generator

FIDELITY_SEED = 2020  # of torch-fidelity's random subsets and splits
Subset = tuple[Tensor, Tensor]  # rows of x and of y


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


def addressed_subsets(m: int, n: int, *, subsets: int, size: int, seed: int) -> Iterator[Subset]:
    """Random rows of sets of m and n; each subset is drawn without replacement from its own address."""
    for index in range(subsets):
        rng = generator(seed, "kid", index)
        yield torch.randperm(m, generator=rng)[:size], torch.randperm(n, generator=rng)[:size]


def fidelity_subsets(m: int, n: int, *, subsets: int, size: int) -> Iterator[Subset]:
    """The rows that torch-fidelity draws by default, so that the same features give its exact value."""
    rng = np.random.RandomState(FIDELITY_SEED)
    for _ in range(subsets):
        rows = rng.choice(m, size, replace=False)
        yield torch.from_numpy(rows), torch.from_numpy(rng.choice(n, size, replace=False))


def kid(
    x: Tensor, y: Tensor, *, subsets: int, size: int, seed: int, fidelity: bool = False,
    device: torch.device | str = "cpu",
) -> Measured:  # fmt: skip
    """Mean and standard deviation of `mmd2` over random subsets, each drawn without replacement.

    Args:
        x: features (m, D).
        y: features (n, D).
        subsets: number of subsets.
        size: rows of each.
        seed: of the subsets.
        fidelity: use torch-fidelity's subsets, which have a fixed seed.
        device: device of the kernels, computed in float64; it holds one subset at a time.

    Raises:
        ValueError: a sample is smaller than a subset.
    """
    if not 2 <= size <= min(len(x), len(y)):
        raise ValueError(f"eval.kid_size: expected 2 to {min(len(x), len(y))} (the smaller set), got {size}")
    chosen: Iterable[Subset] = (
        fidelity_subsets(len(x), len(y), subsets=subsets, size=size)
        if fidelity
        else addressed_subsets(len(x), len(y), subsets=subsets, size=size, seed=seed)
    )
    values = [mmd2(x[rows].to(device).double(), y[columns].to(device).double()) for rows, columns in chosen]
    over = torch.tensor(values, dtype=torch.float64)
    return Measured(float(over.mean()), float(over.std(correction=0)), "subsets")
