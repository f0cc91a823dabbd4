"""Readers of zip, npy, npz, JSON and safetensors that check what a file claims before they believe it.

Each refuses with a DataError of one line; the limits are those of cmcore/limits.py.
"""

import json
import math
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, BinaryIO, NamedTuple

import numpy as np

from cmcore import limits
from cmcore.errors import DataError, reason


class Bounded:
    """A binary file, each of whose reads is refused beyond `most` bytes, as is what goes beyond `left` in all.

    Readers of archives ask for as many bytes as a header claims. Both bounds are None while there are none.
    """

    def __init__(self, file: IO[bytes], where: str) -> None:
        self._file, self._where = file, where
        self.most: int | None = None
        self.left: int | None = None

    def read(self, size: int = -1) -> bytes:
        """Up to `size` bytes, all that are left for -1."""
        if self.most is not None and size > self.most:
            raise DataError(f"{self._where}: expected headers of at most {self.most} bytes, got one of {size}")
        content = self._file.read(size if size >= 0 or self.most is None else self.most)
        if self.left is not None:
            self.left -= len(content)
            if self.left < 0:
                raise DataError(f"{self._where}: expected less than {self.most} bytes of headers for one file")
        return content

    def seek(self, offset: int, whence: int = 0) -> int:
        """Go to a place."""
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        """The place."""
        return self._file.tell()

    def seekable(self) -> bool:
        """Yes."""
        return True

    def close(self) -> None:
        """Close the file."""
        self._file.close()


@contextmanager
def open_zip(file: BinaryIO, where: str) -> Iterator[zipfile.ZipFile]:
    """A zip, whose directory is no larger than its files need and whose files are no decompression bomb.

    Raises:
        DataError: it is damaged, or beyond the limits.
    """
    total = file.seek(0, 2)
    bounded: Any = Bounded(file, where)
    bounded.most = 2**17 + int(limits.DIRECTORY_SHARE * total)
    try:
        archive = zipfile.ZipFile(bounded)
    except DataError:
        raise
    except Exception as error:  # zipfile raises many kinds for damaged files
        raise DataError(f"{where}: is not a sound zip ({reason(error)})") from error
    bounded.most = None
    with archive:
        unpacked = sum(member.file_size for member in archive.infolist())
        check_unpacked(where, unpacked, total, limits.ZIP_BYTES, limits.ZIP_RATIO)
        yield archive


def check_unpacked(where: str, unpacked: int, packed: int, most: int, ratio: int) -> None:
    """Refuse an archive that unpacks to more than `most` bytes and more than `ratio` times the bytes of its file."""
    if unpacked > max(most, ratio * packed):
        raise DataError(
            f"{where}: unpacks to {unpacked} bytes, more than {ratio} times its size, as decompression bombs do; "
            "unpack it, or pack it without compression"
        )


class Header(NamedTuple):
    """The header of an array in numpy's format, and where its numbers begin."""

    shape: tuple[int, ...]
    dtype: np.dtype
    start: int

    @property
    def end(self) -> int:
        """Bytes of the whole file."""
        return self.start + math.prod(self.shape) * self.dtype.itemsize


def npy_header(file: IO[bytes], where: str) -> Header:
    """The header at the head of a .npy stream, which is left behind it.

    Raises:
        DataError: there is none, it is too long, or the array holds Python objects.
    """
    try:
        version = np.lib.format.read_magic(file)
        prefix = file.read(2 if version == (1, 0) else 4)
        length = int.from_bytes(prefix, "little")
        if length > limits.NPY_HEADER_BYTES:
            raise ValueError(f"a header of {length} bytes")
        stream: Any = _Joined(prefix + file.read(length))
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, dtype = read(stream)
    except Exception as error:  # numpy raises many kinds for damaged files
        raise DataError(f"{where}: cannot be read as a .npy file ({reason(error)})") from error
    if dtype.hasobject:
        raise DataError(f"{where}: expected an array of numbers, got Python objects, which are not read")
    return Header(shape, dtype, 8 + len(prefix) + length)


class _Joined:
    """Bytes as a stream, for numpy's readers of headers."""

    def __init__(self, content: bytes) -> None:
        self._content = content

    def read(self, size: int) -> bytes:
        content, self._content = self._content[:size], self._content[size:]
        return content


class Npz:
    """The arrays of an open .npz file by name. Nothing is read but headers until an array is asked for."""

    def __init__(self, archive: zipfile.ZipFile, where: str) -> None:
        self._archive, self._where = archive, where
        self._members = {member.filename.removesuffix(".npy"): member for member in archive.infolist()}

    @property
    def names(self) -> list[str]:
        """Names in the order of the file."""
        return list(self._members)

    def header(self, name: str) -> Header:
        """The header of an array, whose size agrees with the file.

        Raises:
            DataError: it does not, or it is no array.
        """
        where, member = f"{self._where}: {name}", self._members[name]
        try:
            with self._archive.open(member) as file:
                header = npy_header(file, where)
        except DataError:
            raise
        except Exception as error:  # encrypted members, unknown compression, cut streams
            raise DataError(f"{where}: cannot be unpacked ({reason(error)})") from error
        if header.end != member.file_size:
            raise DataError(f"{where}: expected {header.end} bytes for shape {header.shape}, got {member.file_size}")
        return header

    def read(self, name: str) -> np.ndarray:
        """An array.

        Raises:
            DataError: it is damaged.
        """
        self.header(name)
        try:
            with self._archive.open(self._members[name]) as file:
                return np.lib.format.read_array(file, allow_pickle=False)
        except Exception as error:  # zipfile, the decompressors and numpy raise many kinds for damaged files
            raise DataError(f"{self._where}: {name}: cannot be unpacked ({reason(error)})") from error


@contextmanager
def open_npz(path: Path) -> Iterator[Npz]:
    """The arrays of a .npz file.

    Raises:
        DataError: it cannot be read, is damaged, or is beyond the limits.
    """
    try:
        file = path.open("rb")
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error
    with file, open_zip(file, str(path)) as archive:
        yield Npz(archive, str(path))


def parse_json(content: bytes | str, where: str, most: int = limits.JSON_BYTES) -> Any:
    """The data in a JSON text.

    Raises:
        DataError: it is longer than `most` bytes, nested too deep, or no JSON.
    """
    if len(content) > most:
        raise DataError(f"{where}: expected at most {most} bytes of JSON, got {len(content)}")
    try:
        return json.loads(content)
    except RecursionError as error:
        raise DataError(f"{where}: expected JSON, got lists in lists without end") from error
    except ValueError as error:  # also for numbers of thousands of digits
        raise DataError(f"{where}: expected JSON, got something else ({reason(error)})") from error


def check_safetensors(path: Path) -> None:
    """Check the length and the JSON of a safetensors header, which readers believe.

    Raises:
        DataError: it is beyond the limits or damaged.
    """
    try:
        with path.open("rb") as file:
            total = file.seek(0, 2)
            file.seek(0)
            length = int.from_bytes(file.read(8), "little")
            most = min(limits.SAFETENSORS_HEADER_BYTES, max(0, total - 8))
            if not 0 < length <= most:
                raise DataError(f"{path}: expected a safetensors header of 1 to {most} bytes, got one of {length}")
            parse_json(file.read(length), f"{path}: header")
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error
