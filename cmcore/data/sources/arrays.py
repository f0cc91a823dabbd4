"""Images from .npy and .npz files."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from cmcore.bounded import Header, npy_header, open_npz
from cmcore.errors import DataError, reason

IMAGE_KEYS = ("images", "x", "data", "arr_0")
LABEL_KEYS = ("labels", "label", "y", "arr_1")


def read_arrays(path: Path, channels: int) -> tuple[np.ndarray, np.ndarray | None]:
    """Images uint8 (N, C, H, W) and labels int64 (N,), or None where there are none.

    A .npy file is memory-mapped. Images may be stored as (N, H, W), (N, C, H, W) or (N, H, W, C).

    Raises:
        DataError: not such a file, damaged, or of another type or shape.
    """
    try:
        with path.open("rb") as file:
            zipped = file.read(2) == b"PK"
            file.seek(0)
            header = None if zipped else npy_header(file, str(path))
        if header is not None:
            _check_images(path, header, channels)
            return _arranged(np.load(path, mmap_mode="r", allow_pickle=False), channels), None
    except DataError:
        raise
    except Exception as error:  # numpy raises many kinds for damaged files
        raise DataError(f"{path}: cannot be read as a .npy or .npz file ({reason(error)})") from error
    with open_npz(path) as arrays:
        image_key, label_key = (_first(keys, arrays.names) for keys in (IMAGE_KEYS, LABEL_KEYS))
        if image_key is None:
            keys = ", ".join(arrays.names) or "nothing"
            raise DataError(f"{path}: expected images under one of {', '.join(IMAGE_KEYS)}, got {keys}")
        # Both are checked by their headers before either is read.
        header = arrays.header(image_key)
        _check_images(path, header, channels)
        if label_key is not None:
            _check_labels(path, arrays.header(label_key), header.shape[0])
        images = _arranged(arrays.read(image_key), channels)
        return images, None if label_key is None else _labels(path, arrays.read(label_key))


def _first(keys: Sequence[str], names: Sequence[str]) -> str | None:
    return next((key for key in keys if key in names), None)


def _check_images(path: Path, header: Header, channels: int) -> None:
    if header.dtype != np.uint8:
        raise DataError(f"{path}: expected images of type uint8 (0 to 255), got {header.dtype}; convert them first")
    shape = header.shape
    right = (len(shape) == 3 and channels == 1) or (len(shape) == 4 and channels in (shape[1], shape[3]))
    if not right or 0 in shape:
        grey = "(N, H, W), " if channels == 1 else ""
        wanted = f"{grey}(N, {channels}, H, W) or (N, H, W, {channels})"
        raise DataError(f"{path}: expected images of shape {wanted}, got {shape}; see `data.channels`")


def _arranged(images: np.ndarray, channels: int) -> np.ndarray:
    """(N, C, H, W)."""
    if images.ndim == 3:
        return images[:, None]
    return images if images.shape[1] == channels else images.transpose(0, 3, 1, 2)


def _check_labels(path: Path, header: Header, count: int) -> None:
    if header.shape != (count,) or not np.issubdtype(header.dtype, np.integer):
        raise DataError(f"{path}: expected whole-number labels ({count},), got {header.dtype} {header.shape}")


def _labels(path: Path, labels: np.ndarray) -> np.ndarray:
    if labels.min() < 0 or labels.max() >= 2**20:
        raise DataError(f"{path}: expected labels from 0 on, got {labels.min()} to {labels.max()}")
    return labels.astype(np.int64)
