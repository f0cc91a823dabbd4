"""The common form of all sources: a listed data set that is not decoded yet."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

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
    captions: tuple[str, ...] = ()  # one for every row, or none at all
    about: Mapping[str, Any] = MappingProxyType({})  # more facts for the manifest


def dense(labels: np.ndarray, names: Sequence[str] = ()) -> tuple[np.ndarray, tuple[str, ...]]:
    """Labels without gaps, int64 (N,) from 0 on in the order of the given ones, and the names of their classes.

    A class without images is none: no network could learn it, and samples of it would be of nothing. The names, which
    are the given numbers where there are no others, keep the mapping.
    """
    found, labels = np.unique(labels, return_inverse=True)
    return labels.astype(np.int64).reshape(-1), tuple(names[int(k)] if names else str(k) for k in found)
