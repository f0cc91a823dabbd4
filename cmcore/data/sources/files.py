"""The files in a folder, a zip or a tar, one after the other, without unpacking anything to disk.

Names are checked although nothing is unpacked: an archive with absolute or parent paths, links or devices was not made
to hold images. Hidden files and `__MACOSX` are litter of operating systems and passed over; all else must be images.
"""

import os
import stat
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import IO, NamedTuple, TypeVar

from cmcore.errors import DataError

M = TypeVar("M")

FILE_LIMIT = 2**28  # bytes of one image file
TAIL_LIMIT = 2**26  # bytes after the end mark of a tar


class Entry(NamedTuple):
    """A file, by its path below the root, with forward slashes. `read` works until the next entry is asked for."""

    name: str
    read: Callable[[], bytes]


def entries(path: Path, subfolder: str = "", *, file_limit: int = FILE_LIMIT) -> Iterator[Entry]:
    """The files below `subfolder`, named relative to it, in the order in which they are stored.

    Raises:
        DataError: the archive is damaged, or holds something other than plain files with plain relative names.
    """
    if path.is_dir():
        listing = _folder(path)
    elif zipfile.is_zipfile(path):
        listing = _zip(path, file_limit)
    else:
        listing = _tar(path, file_limit)
    root = PurePosixPath(subfolder)
    for name, read in listing:
        inner = PurePosixPath(name)
        if inner.is_relative_to(root) and not _litter(inner):
            yield Entry(str(inner.relative_to(root)), read)


def _litter(name: PurePosixPath) -> bool:
    return any(part.startswith(".") or part == "__MACOSX" for part in name.parts)


def _folder(root: Path) -> Iterator[Entry]:
    base = root.resolve()
    for name, found in walk(root):
        if found.is_symlink() and (found.is_dir() or not Path(found.path).resolve().is_relative_to(base)):
            raise DataError(f"{found.path}: is a link to a folder or to a place outside {root}; copy the files instead")
        if not found.is_file():
            raise DataError(f"{found.path}: expected a plain file")
        yield Entry(name, _reader(Path(found.path)))


def walk(folder: Path, prefix: str = "") -> Iterator[tuple[str, os.DirEntry[str]]]:
    """What is in a folder and below it but folders, by its path from there, folder by folder in the order of names."""
    with os.scandir(folder) as listing:
        listed = sorted(listing, key=lambda found: found.name)
    for found in listed:
        if found.is_dir(follow_symlinks=False):
            yield from walk(Path(found.path), f"{prefix}{found.name}/")
        else:
            yield prefix + found.name, found


def _reader(path: Path) -> Callable[[], bytes]:
    def read() -> bytes:
        try:
            if path.stat().st_size > FILE_LIMIT:
                raise DataError(f"{path}: expected at most {FILE_LIMIT} bytes, got {path.stat().st_size}")
            return path.read_bytes()
        except OSError as error:
            raise DataError(f"{path}: cannot be read ({error})") from error

    return read


def _check_name(archive: Path, name: str) -> None:
    windows = PureWindowsPath(name)
    if name.startswith("/") or windows.drive or windows.root or ".." in windows.parts:
        raise DataError(f"{archive}: holds the path {name!r}, which leaves the archive; it is refused as a whole")


def _check_size(archive: Path, name: str, size: int, limit: int) -> None:
    if size > limit:
        raise DataError(f"{archive}: {name} is too large: expected at most {limit} bytes, got {size}")


def _zip(path: Path, limit: int) -> Iterator[Entry]:
    try:
        with zipfile.ZipFile(path) as archive:
            for member in archive.infolist():
                _check_name(path, member.filename)
                kind = stat.S_IFMT(member.external_attr >> 16)
                if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
                    raise DataError(f"{path}: {member.filename} is a link or a device; expected plain files")
                if not member.is_dir():
                    _check_size(path, member.filename, member.file_size, limit)
                    yield Entry(member.filename, _member_reader(path, member.filename, archive.read, member))
    except DataError:
        raise
    except Exception as error:  # zipfile raises many kinds for damaged files
        raise DataError(f"{path}: is not a sound zip ({error})") from error


def _tar(path: Path, limit: int) -> Iterator[Entry]:
    try:
        with tarfile.open(path, "r:*") as archive:
            while (member := archive.next()) is not None:
                _check_name(path, member.name)
                if not (member.isfile() or member.isdir()):
                    raise DataError(f"{path}: {member.name} is a link or a device; expected plain files")
                if member.isfile():
                    _check_size(path, member.name, member.size, limit)
                    yield Entry(member.name, _member_reader(path, member.name, _read_member(archive), member))
                archive.members.clear()  # pyright: ignore[reportAttributeAccessIssue] (they pile up: one object per file)
            _check_end(path, archive)
    except DataError:
        raise
    except Exception as error:  # tarfile and the decompressors raise many kinds for damaged files
        raise DataError(f"{path}: is not a sound zip or tar ({error})") from error


def _read_member(archive: tarfile.TarFile) -> Callable[[tarfile.TarInfo], bytes]:
    def read(member: tarfile.TarInfo) -> bytes:
        file = archive.extractfile(member)
        data = file.read() if file else b""
        if len(data) != member.size:
            raise tarfile.ReadError(f"expected {member.size} bytes, got {len(data)}")
        return data

    return read


def _member_reader(archive: Path, name: str, read_member: Callable[[M], bytes], member: M) -> Callable[[], bytes]:
    def read() -> bytes:
        try:
            return read_member(member)
        except Exception as error:  # encrypted members, checksum errors, unknown compression, cut streams
            raise DataError(f"{archive}: {name} cannot be unpacked ({error})") from error

    return read


def _check_end(path: Path, archive: tarfile.TarFile) -> None:
    """A tar ends with a block of zeros; but tarfile also stops, in silence, where a header is damaged or cut off."""
    file: IO[bytes] = archive.fileobj  # pyright: ignore[reportAssignmentType]
    file.seek(archive.offset)
    if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
        raise DataError(f"{path}: is damaged or cut off at byte {archive.offset} of the unpacked tar")
    tail = 0
    while chunk := file.read(2**20):  # to the end, where the decompressor compares its checksum
        tail += len(chunk)
        if tail > TAIL_LIMIT:
            raise DataError(f"{path}: goes on for more than {TAIL_LIMIT} bytes after the end of the tar")
