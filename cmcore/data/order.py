"""The order of training images: a pure function of the number of images seen."""

from functools import lru_cache

import numpy as np
import torch

from cmcore.rng import generator


@lru_cache(maxsize=4)
def _permutation(count: int, epoch: int, seed: int) -> np.ndarray:
    order = torch.randperm(count, generator=generator(seed, "order", epoch)).numpy()
    order.flags.writeable = False
    return order


def indices(count: int, position: int, batch: int, seed: int) -> np.ndarray:
    """Rows of the data set (batch,) int64 for the images position, ..., position + batch - 1 of a run.

    Every epoch has its own permutation. A batch may span several epochs, so no image is dropped.
    """
    if count < 1 or position < 0 or batch < 1:
        raise ValueError(f"expected count, batch >= 1 and position >= 0, got {count}, {batch} and {position}")
    first, last = position // count, (position + batch - 1) // count
    epochs = [_permutation(count, epoch, seed) for epoch in range(first, last + 1)]
    rows = epochs[0] if len(epochs) == 1 else np.concatenate(epochs)
    start = position - first * count
    return rows[start : start + batch].copy()
