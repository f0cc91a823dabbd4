"""What counts as a set of images: arrays, or what looks like them and makes every part when it is asked for."""

from typing import Any, Protocol

import numpy as np


class ImageArray(Protocol):
    """(N, C, R, R) uint8."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def ndim(self) -> int: ...

    def __len__(self) -> int: ...

    def __getitem__(self, key: Any, /) -> np.ndarray:
        """An image, a slice, or the images of some indices; as an array gives them."""
        ...


class ImageSet(Protocol):
    """Reference images with labels (N,), and what identifies them."""

    @property
    def images(self) -> ImageArray: ...

    @property
    def labels(self) -> np.ndarray: ...

    @property
    def classes(self) -> int: ...

    @property
    def digest(self) -> str: ...
