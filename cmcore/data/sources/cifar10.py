"""CIFAR-10 from its official archive, cifar-10-python.tar.gz, whose pickles are read without executing anything.

Five training batches and a test batch of 10,000 images each; a row of `data` is one image, channel by channel.
"""

from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from cmcore.data.settings import DataConfig
from cmcore.data.sources.files import entries
from cmcore.data.sources.source import Block, Source, dense
from cmcore.errors import DataError, reason
from cmcore.unpickle import PickleError, load

URL = "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz"
SHA256 = "6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce"
BYTES = 170_498_071
FOLDER, META = "cifar-10-batches-py", "batches.meta"
PARTS = {"train": tuple(f"data_batch_{k}" for k in range(1, 6)), "test": ("test_batch",)}
SHAPE = (3, 32, 32)


def cifar10(config: DataConfig) -> Source:
    """The training images, or with `subfolder: test` the test images, in the archive's own order.

    All of it is read at once: 150 MB.

    Raises:
        DataError: it is not that archive.
    """
    path, wanted = Path(config.place), PARTS[config.subfolder or "train"]
    found: dict[str, dict[bytes, Any]] = {}
    for entry in entries(path, FOLDER):
        if PurePosixPath(entry.name).name in (*wanted, META):
            found[entry.name] = load_batch(entry.read(), f"{path}: {entry.name}")
    if missing := {*wanted, META} - found.keys():
        raise DataError(f"{path}: expected {', '.join(sorted(missing))} in it; is this cifar-10-python.tar.gz?")
    parts = [_part(found[name], f"{path}: {name}") for name in wanted]
    labels = np.concatenate([labels for _, labels in parts])
    labels, names = dense(labels, _names(found[META], int(labels.max()) + 1, f"{path}: {META}"))

    def blocks() -> Iterator[Block]:
        start = 0
        for images, _ in parts:
            yield Block(range(start, start + len(images)), images)
            start += len(images)

    return Source(labels, names, blocks)


def _part(batch: dict[bytes, Any], where: str) -> tuple[np.ndarray, np.ndarray]:
    images, labels = batch.get(b"data"), batch.get(b"labels")
    if not isinstance(images, np.ndarray) or images.dtype != np.uint8 or images.shape[1:] != (3072,):
        raise DataError(f"{where}: expected uint8 images (N, 3072) as 'data'")
    if not isinstance(labels, list) or not all(type(label) is int and 0 <= label < 2**20 for label in labels):
        raise DataError(f"{where}: expected whole numbers from 0 on as 'labels'")
    if len(labels) != len(images) or not labels:
        raise DataError(f"{where}: expected {len(images)} labels, got {len(labels)}")
    return images.reshape(-1, *SHAPE), np.array(labels, np.int64)


def _names(meta: dict[bytes, Any], classes: int, where: str) -> tuple[str, ...]:
    names = meta.get(b"label_names")
    if not isinstance(names, list) or len(names) < classes or not all(isinstance(name, bytes) for name in names):
        raise DataError(f"{where}: expected at least {classes} names as 'label_names'")
    return tuple(name.decode("utf-8", "replace") for name in names)


def load_batch(content: bytes, where: str) -> dict[bytes, Any]:
    """The dict in a pickle of Python 2: numbers, text, lists and arrays.

    Raises:
        DataError: it is damaged, or names anything else.
    """
    try:
        batch = load(content, encoding="bytes")
    except PickleError as error:
        raise DataError(f"{where}: cannot be read as a batch of CIFAR-10 (refused, it asks for {error})") from error
    except Exception as error:  # a damaged pickle fails in any operation there is
        raise DataError(f"{where}: cannot be read as a batch of CIFAR-10 ({reason(error)})") from error
    if not isinstance(batch, dict):
        raise DataError(f"{where}: expected a dict, got {type(batch).__name__}")
    return batch
