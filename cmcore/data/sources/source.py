"""What every kind of source comes down to: a listed, not yet decoded data set."""

from collections.abc import Callable, Iterator, Sequence
from typing import Literal, NamedTuple

import numpy as np


class Block(NamedTuple):
    """Some rows of a data set, and what is stored in them: images (n, C, H, W), or means and deviations."""

    rows: Sequence[int]
    images: np.ndarray


class Source(NamedTuple):
    """A data set that has been listed. Images come in blocks, so that it is never whole in memory."""

    labels: np.ndarray  # (count,) int64; zeros where there are no classes
    class_names: tuple[str, ...]
    blocks: Callable[[], Iterator[Block]]  # every row once, in any order; an array may be overwritten by the next block
    kind: Literal["images", "latents"] = "images"


def numbered(labels: np.ndarray) -> tuple[str, ...]:
    """Names of classes that have only numbers."""
    return tuple(str(k) for k in range(int(labels.max()) + 1))
