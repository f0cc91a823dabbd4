"""The common form of all sources: a listed data set that is not decoded yet."""

from collections.abc import Callable, Iterator, Sequence
from typing import Literal, NamedTuple

import numpy as np


class Block(NamedTuple):
    """Rows of a data set with their contents: images (n, C, H, W), or means and standard deviations (n, 2C, H, W)."""

    rows: Sequence[int]
    images: np.ndarray


class Source(NamedTuple):
    """A listed data set. Images come in blocks, so that memory holds a part of them."""

    labels: np.ndarray  # (count,) int64; zeros where there are no classes
    class_names: tuple[str, ...]
    blocks: Callable[[], Iterator[Block]]  # every row once, in any order; an array may be overwritten by the next block
    kind: Literal["images", "latents"] = "images"


def numbered(labels: np.ndarray) -> tuple[str, ...]:
    """Names of classes that have only numbers."""
    return tuple(str(k) for k in range(int(labels.max()) + 1))
