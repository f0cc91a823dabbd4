"""Where images come from: every kind of source behind one shape, `Source`.

Rows are in the sorted order of the names, whatever order the disk or the archive has, so a data set has one digest.
"""

import hashlib
import itertools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np

from cmcore.data.arrays import read_arrays
from cmcore.data.decode import decode, fit
from cmcore.data.errors import DataError
from cmcore.data.files import entries
from cmcore.data.settings import DataConfig


class Source(NamedTuple):
    """A data set that has been listed, not yet decoded."""

    labels: np.ndarray  # (count,) int64; zeros where there are no classes
    class_names: tuple[str, ...]
    images: Callable[[], Iterator[tuple[int, np.ndarray]]]  # (row, uint8 (C, H, W)), every row once, in any order


def open_source(config: DataConfig) -> Source:
    """List the images of a source.

    Raises:
        DataError: the source is missing, damaged, empty, or not what its checksum says.
    """
    if config.source == "digits":
        return _digits()
    path = Path(config.path)
    if not (path.is_dir() if config.source == "folder" else path.is_file()):
        kind = "folder" if config.source == "folder" else "file"
        raise DataError(f"{path}: expected a {kind}, but there is none; see `data.path` in the parameters")
    if config.sha256:
        _check_sha256(path, config.sha256)
    return _array(path, config) if config.source == "array" else _files(path, config)


def _check_sha256(path: Path, expected: str) -> None:
    with path.open("rb") as file:
        got = hashlib.file_digest(file, "sha256").hexdigest()
    if got != expected:
        raise DataError(f"{path}: expected sha256 {expected}, got {got}; see `data.sha256` in the parameters")


def _digits() -> Source:
    try:
        from sklearn.datasets import load_digits  # a heavy import that no other source needs
    except ImportError as error:
        raise DataError(f"digits: expected scikit-learn, which holds them, to be installed ({error})") from error
    digits: Any = load_digits()
    images = np.round(digits.images * (255 / 16)).astype(np.uint8)[:, None]  # pixel values are 0..16
    names = tuple(str(name) for name in digits.target_names)
    return Source(digits.target.astype(np.int64), names, lambda: iter(enumerate(images)))


def _array(path: Path, config: DataConfig) -> Source:
    images, labels = read_arrays(path, config.channels)
    names = tuple(str(k) for k in range(int(labels.max()) + 1)) if labels is not None else ()

    def rows() -> Iterator[tuple[int, np.ndarray]]:
        for row, image in enumerate(images):
            yield row, fit(image, config.resolution)

    return Source(np.zeros(len(images), np.int64) if labels is None else labels, names, rows)


def _files(path: Path, config: DataConfig) -> Source:
    names = sorted(entry.name for entry in entries(path, config.subfolder))
    if not names:
        raise DataError(f"{path}: expected images below {config.subfolder or 'it'!r}, but there is no file")
    for first, second in itertools.pairwise(names):
        if first == second:
            raise DataError(f"{path}: {first} stands twice in it")
    row_of = {name: row for row, name in enumerate(names)}
    labels, class_names = classes_of(names, str(path))

    def rows() -> Iterator[tuple[int, np.ndarray]]:
        for entry in entries(path, config.subfolder):
            image = decode(entry.read(), config.channels, name=f"{path}: {entry.name}")
            if entry.name not in row_of:
                raise DataError(f"{path}: {entry.name} appeared while the images were being read")
            yield row_of[entry.name], fit(image, config.resolution)

    return Source(labels, class_names, rows)


def classes_of(names: Sequence[str], where: str) -> tuple[np.ndarray, tuple[str, ...]]:
    """Labels (N,) and class names from paths: the class is the folder below the folder that all images share.

    Images without class folders get label 0 and no class names.

    Raises:
        DataError: some images lie in class folders and some beside them.
    """
    folders = [PurePosixPath(name).parts[:-1] for name in names]
    depth = 0
    while all(len(f) > depth and f[depth] == folders[0][depth] for f in folders):
        depth += 1
    bare = [name for name, folder in zip(names, folders, strict=True) if len(folder) == depth]
    if len(bare) == len(names):
        return np.zeros(len(names), np.int64), ()
    if bare:
        raise DataError(
            f"{where}: {bare[0]} lies beside the class folders; expected all images in them, or no such folder"
        )
    found = sorted({folder[depth] for folder in folders})
    index = {name: k for k, name in enumerate(found)}
    return np.array([index[folder[depth]] for folder in folders], np.int64), tuple(found)
