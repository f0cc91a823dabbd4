"""Improved precision and recall: fractions of samples on the other set's estimated manifold (arXiv 1904.06991)."""

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from cmcore.evaluate.records import Measured

_ROWS, _COLUMNS = 1000, 10_000  # of a block of distances: 80 MB in float64, for any number of images


class PrecisionRecall(NamedTuple):
    """Fractions with the standard error of a fraction over its images."""

    precision: Measured
    recall: Measured


def neighbour_radii(x: Tensor, k: int, device: torch.device | str = "cpu") -> Tensor:
    """Distance of every row of x (B, D) to its k-th nearest other row: (B,), float64 on the CPU."""
    if not 1 <= k < len(x):
        raise ValueError(f"eval.neighbours: expected 1 to {len(x) - 1} (one less than the images), got {k}")
    x = x.to(device)
    # A row is among its own neighbours and counts itself first.
    return torch.cat([_nearest(rows, x, k + 1) for rows in x.split(_ROWS)]).cpu()


def covered(x: Tensor, centres: Tensor, radii: Tensor, device: torch.device | str = "cpu") -> Tensor:
    """True for rows of x within the radius of any centre (arXiv 1904.06991, Eq. 1): (B,) bool on the CPU."""
    x, centres, limits = x.to(device), centres.to(device), radii.to(device).split(_COLUMNS)
    hits = []
    for rows in x.split(_ROWS):
        blocks = zip(_distances(rows, centres), limits, strict=True)
        hits.append(torch.stack([(block <= limit).any(1) for block, limit in blocks]).any(0))
    return torch.cat(hits).cpu()


def precision_recall(
    real: Tensor, fake: Tensor, k: int = 3, *, real_radii: Tensor | None = None, device: torch.device | str = "cpu"
) -> PrecisionRecall:
    """Precision: the fraction of fake rows on the real manifold; recall: of real rows on the fake one (Eq. 2).

    `real_radii` is `neighbour_radii(real, k)` if known.
    """
    real_radii = neighbour_radii(real, k, device) if real_radii is None else real_radii
    precision = covered(fake, real, real_radii, device)
    recall = covered(real, fake, neighbour_radii(fake, k, device), device)
    return PrecisionRecall(_fraction(precision), _fraction(recall))


def _distances(rows: Tensor, y: Tensor) -> Iterator[Tensor]:
    """Distances of some rows to all of y, block by block, in float64: float32 loses too many digits."""
    rows = rows.double()
    for columns in y.split(_COLUMNS):
        yield torch.cdist(rows, columns.double())


def _nearest(rows: Tensor, y: Tensor, rank: int) -> Tensor:
    """Distance of each row to its rank-th nearest row of y."""
    best = [block.topk(min(rank, block.shape[1]), dim=1, largest=False).values for block in _distances(rows, y)]
    return torch.cat(best, dim=1).topk(rank, dim=1, largest=False).values[:, -1]


def _fraction(hits: Tensor) -> Measured:
    p = float(hits.double().mean())
    return Measured(p, math.sqrt(p * (1 - p) / len(hits)), "images")
