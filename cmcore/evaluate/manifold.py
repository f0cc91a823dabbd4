"""Improved precision and recall: which samples lie on the other set's estimated manifold (arXiv 1904.06991)."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from cmcore.evaluate.records import Measured

_ROWS = 1000  # distances held at once, in rows


class PrecisionRecall(NamedTuple):
    """Fractions with the standard error of a fraction over its images."""

    precision: Measured
    recall: Measured


def neighbour_radii(x: Tensor, k: int) -> Tensor:
    """Distance of every row of x (B, D) to its k-th nearest other row: (B,)."""
    if not 1 <= k < len(x):
        raise ValueError(f"eval.neighbours: expected 1 to {len(x) - 1} (one less than the images), got {k}")
    return torch.cat([_nearest(rows, x, k + 1) for rows in x.split(_ROWS)])


def covered(x: Tensor, centres: Tensor, radii: Tensor) -> Tensor:
    """Whether each row of x lies within the radius of any centre (arXiv 1904.06991, Eq. 1): (B,) bool."""
    return torch.cat([(torch.cdist(rows, centres) <= radii).any(1) for rows in x.split(_ROWS)])


def precision_recall(real: Tensor, fake: Tensor, k: int = 3) -> PrecisionRecall:
    """Precision: the fraction of fake rows on the real manifold; recall: of real rows on the fake one (Eq. 2)."""
    real, fake = real.double(), fake.double()
    precision = covered(fake, real, neighbour_radii(real, k))
    recall = covered(real, fake, neighbour_radii(fake, k))
    return PrecisionRecall(_fraction(precision), _fraction(recall))


def _nearest(x: Tensor, y: Tensor, rank: int) -> Tensor:
    """Distance of each row of x to its rank-th nearest row of y; a row that is in both counts itself first."""
    return torch.cdist(x, y).topk(rank, dim=1, largest=False).values[:, -1]


def _fraction(hits: Tensor) -> Measured:
    p = float(hits.double().mean())
    return Measured(p, math.sqrt(p * (1 - p) / len(hits)), "images")
