"""Protocols of image sets: arrays, and array-likes that compute their rows on access."""

from typing import Any, Protocol

import numpy as np

from cmcore.diffusion.words import Words


class ImageArray(Protocol):
    """An array or array-like, (N, C, R, R) uint8."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def ndim(self) -> int: ...

    def __len__(self) -> int: ...

    def __getitem__(self, key: Any, /) -> np.ndarray:
        """The images of an index, a slice or an array of indices, as numpy selects them."""
        ...


class ImageSet(Protocol):
    """Reference images with labels (N,), captions (N, L) where there are some, and a digest."""

    @property
    def images(self) -> ImageArray: ...

    @property
    def labels(self) -> np.ndarray: ...

    @property
    def classes(self) -> int: ...

    @property
    def captions(self) -> np.ndarray | None: ...

    @property
    def words(self) -> Words | None: ...

    @property
    def digest(self) -> str: ...
