"""Fashion-MNIST (arXiv 1708.07747) from its four idx files, plain or compressed with gzip, in one folder.

60,000 training and 10,000 test images of 28x28 grey pixels in ten classes. Debian's package dataset-fashion-mnist has
the files. An idx file is a magic number with the number of its dimensions, their lengths as big-endian 32-bit numbers,
then the values.
"""

import gzip
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import numpy as np

from cmcore import limits
from cmcore.bounded import check_unpacked
from cmcore.data.settings import DataConfig
from cmcore.data.sources.source import Block, Source
from cmcore.errors import DataError, reason

PREFIXES = {"train": "train", "test": "t10k"}
NAMES = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip
SIDE = 28
SOME = 1024  # images to a block
_UNSIGNED_BYTES = 0x0800  # of the magic number, whose last byte is the number of dimensions


def fashion_mnist(config: DataConfig) -> Source:
    """The training images, or with `subfolder: test` the test images, in the order of the files.

    Raises:
        DataError: a file is missing, damaged, or of another shape.
    """
    folder, prefix = Path(config.place), PREFIXES[config.subfolder or "train"]
    images, labels = _file(folder, f"{prefix}-images-idx3-ubyte"), _file(folder, f"{prefix}-labels-idx1-ubyte")
    found = np.concatenate(list(_items(labels, ()))).astype(np.int64)
    if found.max() >= len(NAMES):
        raise DataError(f"{labels}: expected labels from 0 to {len(NAMES) - 1}, got {found.max()}")
    with _opened(images) as file:
        count = _count(file, images, (SIDE, SIDE))
    if count != len(found):
        raise DataError(f"{images}: expected {len(found)} images, as many as labels, got {count}")

    def blocks() -> Iterator[Block]:
        start = 0
        for some in _items(images, (SIDE, SIDE)):
            yield Block(range(start, start + len(some)), some[:, None])
            start += len(some)

    return Source(found, NAMES, blocks)


def _file(folder: Path, name: str) -> Path:
    """The file of that name in the folder, compressed or not."""
    found = next((path for path in (folder / f"{name}.gz", folder / name) if path.is_file()), None)
    if found is None:
        raise DataError(f"{folder}: expected {name} or {name}.gz in it; see `data.path` in the parameters")
    return found


@contextmanager
def _opened(path: Path) -> Iterator[IO[bytes]]:
    """The file without its compression; what fails inside is of the file."""
    try:
        with path.open("rb") as packed:
            zipped = packed.read(2) == b"\x1f\x8b"
            packed.seek(0)
            if zipped:
                with gzip.GzipFile(fileobj=packed) as file:
                    yield file  # type: ignore[misc]
            else:
                yield packed
    except DataError:
        raise
    except Exception as error:  # gzip and zlib raise many kinds for damaged files
        raise DataError(f"{path}: cannot be read as an idx file ({reason(error)})") from error


def _count(file: IO[bytes], path: Path, shape: tuple[int, ...]) -> int:
    """The number of items of that shape that the header states, if the file can hold them."""
    size = 4 * (2 + len(shape))
    header = file.read(size)
    if len(header) < size:
        raise DataError(f"{path}: expected an idx file, got {len(header)} bytes")
    magic, count, *rest = struct.unpack(f">{2 + len(shape)}I", header)
    if magic != _UNSIGNED_BYTES + 1 + len(shape) or tuple(rest) != shape or count == 0:
        wanted = " x ".join(map(str, ("N", *shape)))
        raise DataError(f"{path}: expected an idx file of {wanted} unsigned bytes, got the header {header.hex()}")
    claimed = size + count * int(np.prod(shape, dtype=np.int64))
    check_unpacked(str(path), claimed, path.stat().st_size, limits.ZIP_BYTES, limits.ZIP_RATIO)
    return count


def _items(path: Path, shape: tuple[int, ...]) -> Iterator[np.ndarray]:
    """The items, uint8 (n, *shape), a block at a time."""
    size = int(np.prod(shape, dtype=np.int64))
    with _opened(path) as file:
        left = _count(file, path, shape)
        while left:
            some = min(left, SOME)
            content = file.read(some * size)
            if len(content) < some * size:
                raise DataError(
                    f"{path}: ends {left * size - len(content)} bytes before the end that its header states"
                )
            yield np.frombuffer(content, np.uint8).reshape(some, *shape)
            left -= some
        if file.read(1):  # at the end of its stream gzip compares the checksum
            raise DataError(f"{path}: goes on after the end that its header states")
