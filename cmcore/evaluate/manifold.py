"""Measures of two sets of features by nearest neighbours: fidelity, diversity and copying.

Precision and recall (arXiv 1904.06991), density and coverage (arXiv 2002.09797), authenticity (arXiv 2102.08921).
"""

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from cmcore.evaluate.records import Measured

_ROWS, _COLUMNS = 1000, 10_000  # of a block of distances: 80 MB in float64, for any number of images


class Manifold(NamedTuple):
    """The measures with the standard error of a mean over its images."""

    precision: Measured
    recall: Measured
    density: Measured
    coverage: Measured
    authenticity: Measured


def neighbour_distances(x: Tensor, k: int, device: torch.device | str = "cpu") -> Tensor:
    """Distances of every row of x (B, D) to its k nearest other rows, ascending: (B, k), float64 on the CPU."""
    if not 1 <= k < len(x):
        raise ValueError(f"eval.neighbours: expected 1 to {len(x) - 1} (one less than the images), got {k}")
    x = x.to(device)
    # A row is among its own neighbours and counts itself first.
    return torch.cat([_nearest(rows, x, k + 1)[:, 1:] for rows in x.split(_ROWS)]).cpu()


def neighbour_radii(x: Tensor, k: int, device: torch.device | str = "cpu") -> Tensor:
    """Distance of every row of x (B, D) to its k-th nearest other row: (B,), float64 on the CPU."""
    return neighbour_distances(x, k, device)[:, -1].contiguous()


def covered(x: Tensor, centres: Tensor, radii: Tensor, device: torch.device | str = "cpu") -> Tensor:
    """True for rows of x within the radius of any centre (arXiv 1904.06991, Eq. 1): (B,) bool on the CPU."""
    x, centres, limits = x.to(device), centres.to(device), radii.to(device).split(_COLUMNS)
    hits = []
    for rows in x.split(_ROWS):
        blocks = zip(_distances(rows, centres), limits, strict=True)
        hits.append(torch.stack([(block <= limit).any(1) for block, limit in blocks]).any(0))
    return torch.cat(hits).cpu()


def manifold(
    real: Tensor, fake: Tensor, k: int = 3, *, distances: Tensor | None = None, device: torch.device | str = "cpu"
) -> Manifold:
    """Neighbourhood measures of fake rows (M, D) against real rows (N, D).

    - precision: share of fake rows within the k-th neighbour radius of any real row (arXiv 1904.06991, Eq. 2);
    - recall: the same with the sets exchanged;
    - density: mean number of real neighbourhoods that a fake row lies in, over k (arXiv 2002.09797, Sec. 3); expected 1
      for fresh samples;
    - coverage: share of real rows with a fake row in their neighbourhood (same section);
    - authenticity: share of fake rows that are farther from their nearest real row than that row is from its own
      nearest real row (arXiv 2102.08921); expected 1/3 (one dimension) to 1/2 (many) for fresh samples, 0 for copies.

    Args:
        real: features.
        fake: features.
        k: rank of the neighbour that gives a neighbourhood its radius.
        distances: `neighbour_distances(real, k)` if known.
        device: device of the distances.
    """
    distances = neighbour_distances(real, k, device) if distances is None else distances
    found = _against(fake, real, distances[:, -1].contiguous(), device)
    recall = covered(real, fake, neighbour_radii(fake, k, device), device)
    return Manifold(
        precision=_fraction(found.hits > 0),
        recall=_fraction(recall),
        density=_mean(found.hits.double() / k),
        coverage=_fraction(found.reached),
        authenticity=_fraction(found.nearest > distances[found.neighbour, 0]),
    )


class _Against(NamedTuple):
    """Of fake rows against real ones, on the CPU."""

    hits: Tensor  # (M,) int64: real neighbourhoods that hold the fake row
    reached: Tensor  # (N,) bool: whether the neighbourhood of the real row holds any fake row
    nearest: Tensor  # (M,) float64: distance to the nearest real row
    neighbour: Tensor  # (M,) int64: which real row that is


def _against(fake: Tensor, real: Tensor, radii: Tensor, device: torch.device | str) -> _Against:
    fake, real, limits = fake.to(device), real.to(device), radii.to(device).split(_COLUMNS)
    reached = [torch.zeros_like(limit, dtype=torch.bool) for limit in limits]
    hits, nearest, neighbour = [], [], []
    for rows in fake.split(_ROWS):
        inside, best = torch.zeros(len(rows), dtype=torch.int64, device=real.device), []
        for index, block in enumerate(_distances(rows, real)):
            within = block <= limits[index]
            inside += within.sum(1)
            reached[index] |= within.any(0)
            best.append(block.min(1))
        least = torch.stack([found.values for found in best])
        places = torch.stack([found.indices + index * _COLUMNS for index, found in enumerate(best)])
        least, which = least.min(0)
        hits.append(inside)
        nearest.append(least)
        neighbour.append(places.gather(0, which[None])[0])
    return _Against(*(torch.cat(parts).cpu() for parts in (hits, reached, nearest, neighbour)))


def _distances(rows: Tensor, y: Tensor) -> Iterator[Tensor]:
    """Distances of some rows to all of y, block by block, in float64: float32 loses too many digits."""
    rows = rows.double()
    for columns in y.split(_COLUMNS):
        yield torch.cdist(rows, columns.double())


def _nearest(rows: Tensor, y: Tensor, rank: int) -> Tensor:
    """Distances of each row to its `rank` nearest rows of y, ascending."""
    best = [block.topk(min(rank, block.shape[1]), dim=1, largest=False).values for block in _distances(rows, y)]
    return torch.cat(best, dim=1).topk(rank, dim=1, largest=False).values


def _fraction(hits: Tensor) -> Measured:
    p = float(hits.double().mean())
    return Measured(p, math.sqrt(p * (1 - p) / len(hits)), "images")


def _mean(values: Tensor) -> Measured:
    return Measured(float(values.mean()), float(values.std(correction=0)) / math.sqrt(len(values)), "images")
