"""The files in a folder, a zip or a tar, one after the other, without unpacking anything to disk.

Names are checked although nothing is unpacked: an archive with absolute or parent paths, links or devices was not made
to hold images. Hidden files and `__MACOSX` come from operating systems and are skipped; all else must be images.
"""

import bz2
import gzip
import lzma
import os
import stat
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import IO, Any, NamedTuple, TypeVar

from cmcore import limits
from cmcore.bounded import Bounded, check_unpacked, open_zip
from cmcore.errors import DataError, reason

M = TypeVar("M")
_COMPRESSIONS: dict[bytes, Callable[[Any], Any]] = {
    b"\x1f\x8b": lambda file: gzip.GzipFile(fileobj=file),
    b"BZh": bz2.BZ2File,
    b"\xfd7zXZ": lzma.LZMAFile,
    b"]\x00\x00": lzma.LZMAFile,
}
_ZIP = b"PK"


class Entry(NamedTuple):
    """A file, by its path below the root, with forward slashes. `read` works until the next entry is taken."""

    name: str
    read: Callable[[], bytes]


def entries(path: Path, subfolder: str = "") -> Iterator[Entry]:
    """The files below `subfolder`, named relative to it, in the order in which they are stored.

    Raises:
        DataError: the archive is damaged or beyond the limits, or holds something other than plain files with plain
            relative names.
    """
    if path.is_dir():
        listing = _folder(path)
    elif _head(path).startswith(_ZIP):
        listing = _zip(path)
    else:
        listing = _tar(path)
    root = PurePosixPath(subfolder)
    for name, read in listing:
        inner = PurePosixPath(name)
        if inner.is_relative_to(root) and not _hidden(inner):
            yield Entry(str(inner.relative_to(root)), read)


def is_tar(path: Path) -> bool:
    """Whether a place is an archive that is read from its beginning to list its files."""
    return path.is_file() and not _head(path).startswith(_ZIP)


def _head(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(8)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error


def _hidden(name: PurePosixPath) -> bool:
    return any(part.startswith(".") or part == "__MACOSX" for part in name.parts)


def _folder(root: Path) -> Iterator[Entry]:
    base = root.resolve()
    for name, found in walk(root):
        place = Path(found.path)
        try:
            outside = found.is_symlink() and (found.is_dir() or not place.resolve().is_relative_to(base))
            plain = found.is_file()
        except (OSError, RuntimeError) as error:  # the latter for a link to itself
            raise DataError(f"{place}: cannot be read; is it a link to itself?") from error
        if outside:
            raise DataError(f"{place}: is a link to a folder or to a place outside {root}; copy the files instead")
        if not plain:
            raise DataError(f"{place}: expected a plain file")
        yield Entry(name, _reader(place))


def walk(folder: Path, prefix: str = "", depth: int = 0) -> Iterator[tuple[str, os.DirEntry[str]]]:
    """The files below a folder, and whatever else is no folder, by relative path: folder by folder, sorted by name.

    Raises:
        DataError: a folder cannot be read, or lies too deep.
    """
    if depth > limits.FOLDER_DEPTH:
        raise DataError(f"{folder}: expected folders at most {limits.FOLDER_DEPTH} deep")
    try:
        with os.scandir(folder) as listing:
            listed = sorted(listing, key=lambda found: found.name)
    except OSError as error:
        raise DataError(f"{folder}: cannot be read ({error.strerror})") from error
    for found in listed:
        if found.is_dir(follow_symlinks=False):
            yield from walk(Path(found.path), f"{prefix}{found.name}/", depth + 1)
        else:
            yield prefix + found.name, found


def _reader(path: Path) -> Callable[[], bytes]:
    def read() -> bytes:
        try:
            if path.stat().st_size > limits.FILE_BYTES:
                raise DataError(f"{path}: expected at most {limits.FILE_BYTES} bytes, got {path.stat().st_size}")
            return path.read_bytes()
        except OSError as error:
            raise DataError(f"{path}: cannot be read ({error.strerror})") from error

    return read


def _check_member(archive: Path, name: str, size: int, plain: bool) -> None:
    """Refuse an archive for a member of it that is no plain file or has no plain name."""
    windows = PureWindowsPath(name)
    if len(name) > limits.NAME_CHARACTERS or name.count("/") > limits.NAME_PARTS:
        raise DataError(f"{archive}: holds a path of {len(name)} characters, {name[:50]!r}...")
    if name.startswith("/") or windows.drive or windows.root or ".." in windows.parts:
        raise DataError(f"{archive}: holds the path {name!r}, which leaves the archive; it is refused as a whole")
    if not plain:
        raise DataError(f"{archive}: {name} is a link or a device; expected plain files")
    if size > limits.FILE_BYTES:
        raise DataError(f"{archive}: {name} is too large: expected at most {limits.FILE_BYTES} bytes, got {size}")


def _zip(path: Path) -> Iterator[Entry]:
    try:
        with path.open("rb") as file, open_zip(file, str(path)) as archive:
            for member in archive.infolist():
                kind = stat.S_IFMT(member.external_attr >> 16)
                _check_member(path, member.filename, member.file_size, kind in (0, stat.S_IFREG, stat.S_IFDIR))
                if not member.is_dir():
                    yield Entry(member.filename, _member_reader(path, member.filename, archive.read, member))
    except DataError:
        raise
    except Exception as error:  # zipfile raises many kinds for damaged files
        raise DataError(f"{path}: is not a sound zip ({reason(error)})") from error


def _tar(path: Path) -> Iterator[Entry]:
    try:
        with path.open("rb") as packed, _unpacked(packed) as stream:
            bounded: Any = Bounded(stream, str(path))
            bounded.most = bounded.left = limits.MEMBER_HEADER_BYTES  # opening it reads the first header
            size = path.stat().st_size
            with tarfile.open(fileobj=bounded, mode="r:") as archive:
                while (member := _next_member(archive, bounded)) is not None:
                    _check_member(path, member.name, member.size, member.isreg() or member.isdir())
                    check_unpacked(
                        str(path), member.offset_data + member.size, size, limits.TAR_BYTES, limits.TAR_RATIO
                    )
                    if not member.isdir():
                        yield Entry(member.name, _member_reader(path, member.name, _read_member(archive), member))
                _check_end(path, archive, stream)
    except DataError:
        raise
    except Exception as error:  # tarfile and the decompressors raise many kinds for damaged files
        raise DataError(f"{path}: is not a sound zip or tar ({reason(error)})") from error


def _unpacked(packed: IO[bytes]) -> IO[bytes]:
    """The stream without its compression; of none, the stream itself."""
    head = packed.read(8)
    packed.seek(0)
    return next((unpack(packed) for magic, unpack in _COMPRESSIONS.items() if head.startswith(magic)), packed)


def _next_member(archive: tarfile.TarFile, bounded: Bounded) -> tarfile.TarInfo | None:
    """The next member. tarfile reads headers as long, and as many before a member, as the archive claims."""
    bounded.most = bounded.left = limits.MEMBER_HEADER_BYTES
    member = archive.next()
    bounded.most = bounded.left = None
    # They pile up: an object for each file, and what headers say of all files after them.
    archive.members.clear()  # pyright: ignore[reportAttributeAccessIssue]
    archive.pax_headers.clear()  # pyright: ignore[reportAttributeAccessIssue]
    return member


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
            raise DataError(f"{archive}: {name} cannot be unpacked ({reason(error)})") from error

    return read


def _check_end(path: Path, archive: tarfile.TarFile, stream: IO[bytes]) -> None:
    """A tar ends with a block of zeros; but tarfile also stops, in silence, where a header is damaged or cut off."""
    stream.seek(archive.offset)
    if stream.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
        raise DataError(f"{path}: is damaged or cut off at byte {archive.offset} of the unpacked tar")
    tail = 0
    while chunk := stream.read(2**20):  # to the end, where the decompressor compares its checksum
        tail += len(chunk)
        if tail > limits.TAIL_BYTES:
            raise DataError(f"{path}: goes on for more than {limits.TAIL_BYTES} bytes after the end of the tar")
