"""Tensors on disk: safetensors with a JSON header, written so that a reader sees the old file or the new one.

Nothing here can execute code when it is read. Every tensor has a checksum in the header, and the header has one of its
own. All of them are checked when a file is read: CRC-32, which finds every damage of up to 32 bits in a row, and of
larger ones all but one in 2^32, at several gigabytes per second.
"""

import json
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_bytes
from torch import Tensor

from cmcore.atomic import write_atomic
from cmcore.bounded import check_safetensors, parse_json
from cmcore.errors import DataError, reason


class CheckpointError(ValueError):
    """A file of tensors cannot be read or does not fit."""


def remove_partial(folder: Path) -> None:
    """Remove the partial files of killed writers from a folder without another writer."""
    for part in folder.glob("**/.*.part"):
        part.unlink(missing_ok=True)


def save(path: Path, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> None:
    """Write named tensors and JSON data atomically. Equal content gives equal bytes."""
    held: dict[str, Tensor] = {}
    places: set[int] = set()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        # The format has no two names for one memory, but every profile has the same buffers.
        held[name] = tensor.clone() if tensor.data_ptr() in places else tensor
        places.add(tensor.data_ptr())
    text = json.dumps({"checksums": [checksum(tensor) for tensor in held.values()], "meta": meta}, sort_keys=True)
    write_atomic(path, to_bytes(held, {"meta": _sealed(text, list(held))}))


def header(path: Path, *, early: bool = False) -> dict[str, Any]:
    """The JSON data of a file; no tensor is read. Arguments and errors are those of `load`."""
    with _opened(path, early) as (_, meta, _):
        return meta


def load(
    path: Path, prefix: str | Callable[[dict[str, Any]], str] = "", *, early: bool = False
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read the tensors whose names start with `prefix` (without it), and the JSON data, which may choose the prefix.

    With `early`, files of before there were checksums are read as well, unchecked. A file that is missing, damaged or
    not one of ours gives a CheckpointError.
    """
    with _opened(path, early) as (file, meta, checksums):
        start = prefix if isinstance(prefix, str) else prefix(meta)
        names = [name for name in checksums if name.startswith(start)]
        return {name[len(start) :]: _tensor(path, file, name, checksums[name]) for name in names}, meta


def _tensor(path: Path, file: Any, name: str, expected: int | None) -> Tensor:
    """A tensor of an open file, with its checksum where one is expected."""
    tensor = file.get_tensor(name)
    if expected is not None and checksum(tensor) != expected:
        damaged = f"a damaged tensor, {name}, which does not have its checksum"
        raise CheckpointError(f"{path}: expected a weight file of this project, got: {damaged}")
    return tensor


def checksum(tensor: Tensor) -> int:
    """CRC-32 of the type, the shape and the numbers of a tensor on the CPU."""
    kind = zlib.crc32(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
    return zlib.crc32(tensor.reshape(-1).view(torch.uint8).numpy().data, kind) if tensor.numel() else kind


def _sealed(text: str, names: Sequence[str]) -> str:
    """The JSON text behind the checksum, of eight hexadecimal digits, of itself and of the names of the tensors."""
    return f"{zlib.crc32(json.dumps([text, *names]).encode()):08x}{text}"


Rows = Callable[[str, tuple[int, ...]], slice | None]


def load_rows(path: Path, rows: Rows) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read tensors of which several files may hold some rows each; of every tensor the rows that are asked for.

    The JSON data of `path` name the other files, which lie beside it, in "files"; "rows" holds, by name, the first row
    and the shape of the whole of what is in a file in part.

    Args:
        path: the file that is whole once all others are.
        rows: of a tensor's name and its whole shape, the rows that are wanted; None for all.

    Returns:
        The tensors, and the JSON data of `path`.

    Raises:
        CheckpointError: a file is missing or not one of ours, they do not belong together, or rows are in none.
    """
    with ExitStack() as stack:
        file, meta, checksums = stack.enter_context(_opened(path))
        files = [(path, file, meta, checksums)]
        for name in meta.get("files", []):
            if Path(name).name != name:
                raise CheckpointError(f"{path}: expected names of files beside it, got {name!r}")
            other = path.with_name(name)
            files.append((other, *stack.enter_context(_opened(other))))
            if any(files[-1][2].get(key) != meta.get(key) for key in ("fingerprint", "images")):
                raise CheckpointError(f"{other}: expected a part of {path.name}, got one of another moment")
        pieces: dict[str, list[_Piece]] = {}
        for where, file, about, checksums in files:
            for name, expected in checksums.items():
                held = tuple(file.get_slice(name).get_shape())
                start, shape = about.get("rows", {}).get(name, (0, held))
                pieces.setdefault(name, []).append(_Piece(start, held, tuple(shape), where, file, expected))
        return {name: _joined(path, name, some, rows) for name, some in pieces.items()}, meta


class _Piece(NamedTuple):
    """Some rows of a tensor in an open file."""

    start: int
    held: tuple[int, ...]  # the shape of these rows
    shape: tuple[int, ...]  # of the whole
    path: Path
    file: Any
    checksum: int | None


def _joined(path: Path, name: str, pieces: list[_Piece], rows: Rows) -> Tensor:
    """The rows of a tensor that are asked for, from the pieces that have some of them."""
    shape, pieces = pieces[0].shape, sorted(pieces, key=lambda piece: piece.start)
    if not shape:
        return _tensor(pieces[0].path, pieces[0].file, name, pieces[0].checksum)
    ends = list(accumulate((piece.held[0] for piece in pieces), initial=0))
    if ends != [*(piece.start for piece in pieces), shape[0]]:
        raise CheckpointError(f"{path}: expected all {shape[0]} rows of {name} once, got files with others")
    wanted = rows(name, shape) or slice(0, shape[0])
    found = []
    for piece in pieces:
        low, high = (min(max(row - piece.start, 0), piece.held[0]) for row in (wanted.start, wanted.stop))
        if low < high:  # a checksum is of a whole piece
            found.append(_tensor(piece.path, piece.file, name, piece.checksum)[low:high])
    return torch.cat(found) if found else pieces[0].file.get_slice(name)[0:0]


@contextmanager
def _opened(path: Path, early: bool = False) -> Iterator[tuple[Any, dict[str, Any], dict[str, int | None]]]:
    """A file of tensors with its JSON data, and the checksums of its tensors."""
    try:
        check_safetensors(path)
        with safe_open(path, framework="pt") as file:
            names, sealed = sorted(file.keys()), (file.metadata() or {})["meta"]
            if early and sealed.startswith("{"):
                yield file, parse_json(sealed, "meta"), dict.fromkeys(names)
                return
            if sealed != _sealed(sealed[8:], names):
                raise DataError("a header that is damaged or without a checksum")
            held = parse_json(sealed[8:], "meta")
            yield file, held["meta"], dict(zip(names, held["checksums"], strict=True))
    except (OSError, SafetensorError, KeyError, TypeError, DataError) as error:
        raise CheckpointError(f"{path}: expected a weight file of this project, got: {reason(error)}") from error
