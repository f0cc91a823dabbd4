"""Images from .npy and .npz files."""

import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from cmcore.errors import DataError

IMAGE_KEYS = ("images", "x", "data", "arr_0")
LABEL_KEYS = ("labels", "label", "y", "arr_1")
SIZE_LIMIT, RATIO_LIMIT = 2**28, 100  # larger than the one and denser than the other is no set of images


def read_arrays(path: Path, channels: int) -> tuple[np.ndarray, np.ndarray | None]:
    """Images uint8 (N, C, H, W) and labels int64 (N,), or None where there are none.

    A .npy file is memory-mapped. Images may be stored as (N, H, W), (N, C, H, W) or (N, H, W, C).

    Raises:
        DataError: not such a file, damaged, or of another type or shape.
    """
    try:
        with path.open("rb") as file:
            if file.read(2) == b"PK":
                _refuse_bombs(path)
                file.seek(0)
                images, labels = _choose(path, np.load(file, allow_pickle=False))
            else:
                images, labels = np.load(path, mmap_mode="r", allow_pickle=False), None
    except DataError:
        raise
    except Exception as error:  # numpy and zipfile raise many kinds for damaged files
        raise DataError(f"{path}: cannot be read as a .npy or .npz file without pickles ({error})") from error
    images = _images(path, images, channels)
    return images, None if labels is None else _labels(path, labels, len(images))


def _refuse_bombs(path: Path) -> None:
    with zipfile.ZipFile(path) as archive:
        for member in archive.infolist():
            if member.file_size > max(SIZE_LIMIT, RATIO_LIMIT * member.compress_size):
                raise DataError(f"{path}: {member.filename} unpacks to {member.file_size} bytes, a decompression bomb")


def _choose(path: Path, arrays: Mapping[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray | None]:
    image_key = next((key for key in IMAGE_KEYS if key in arrays), None)
    if image_key is None:
        keys = ", ".join(arrays) or "nothing"
        raise DataError(f"{path}: expected images under one of {', '.join(IMAGE_KEYS)}, got {keys}")
    label_key = next((key for key in LABEL_KEYS if key in arrays), None)
    return arrays[image_key], None if label_key is None else arrays[label_key]


def _images(path: Path, images: np.ndarray, channels: int) -> np.ndarray:
    if images.dtype != np.uint8:
        raise DataError(f"{path}: expected images of type uint8 (0 to 255), got {images.dtype}; convert them first")
    stored = images.shape
    if images.ndim == 3 and channels == 1:
        images = images[:, None]
    if images.ndim == 4 and images.shape[1] != channels and images.shape[3] == channels:
        images = images.transpose(0, 3, 1, 2)
    if images.ndim != 4 or images.shape[1] != channels or 0 in images.shape:
        grey = "(N, H, W), " if channels == 1 else ""
        wanted = f"{grey}(N, {channels}, H, W) or (N, H, W, {channels})"
        raise DataError(f"{path}: expected images of shape {wanted}, got {stored}; see `data.channels`")
    return images


def _labels(path: Path, labels: np.ndarray, count: int) -> np.ndarray:
    if labels.shape != (count,) or not np.issubdtype(labels.dtype, np.integer):
        raise DataError(f"{path}: expected whole-number labels ({count},), got {labels.dtype} {labels.shape}")
    if labels.min() < 0 or labels.max() >= 2**20:
        raise DataError(f"{path}: expected labels from 0 on, got {labels.min()} to {labels.max()}")
    return labels.astype(np.int64)
