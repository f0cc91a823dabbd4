"""Tensors on disk: safetensors with a JSON header, written so that a reader sees the old file or the new one.

Nothing here can execute code when it is read. Every tensor has a checksum in the header, and the header has one of its
own. All of them are checked when a file is read: CRC-32, which finds every damage of up to 32 bits in a row, and of
larger ones all but one in 2^32, at several gigabytes per second.
"""

import json
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

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
        tensors = {name: file.get_tensor(name) for name in checksums if name.startswith(start)}
        for name, tensor in tensors.items():
            if checksums[name] is not None and checksum(tensor) != checksums[name]:
                raise DataError(f"a damaged tensor, {name}, which does not have its checksum")
        return {name[len(start) :]: tensor for name, tensor in tensors.items()}, meta


def checksum(tensor: Tensor) -> int:
    """CRC-32 of the type, the shape and the numbers of a tensor on the CPU."""
    kind = zlib.crc32(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
    return zlib.crc32(tensor.reshape(-1).view(torch.uint8).numpy().data, kind) if tensor.numel() else kind


def _sealed(text: str, names: Sequence[str]) -> str:
    """The JSON text behind the checksum, of eight hexadecimal digits, of itself and of the names of the tensors."""
    return f"{zlib.crc32(json.dumps([text, *names]).encode()):08x}{text}"


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
