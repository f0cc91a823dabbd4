"""Tensors on disk: safetensors with a JSON header, written so that a reader sees the old file or the new one.

Nothing here can execute code when it is read.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_bytes
from torch import Tensor

from cmcore.atomic import write_atomic
from cmcore.bounded import check_safetensors, parse_json
from cmcore.errors import DataError


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
    write_atomic(path, to_bytes(held, {"meta": json.dumps(meta, sort_keys=True)}))


def header(path: Path) -> dict[str, Any]:
    """The JSON data of a file; no tensor is read. The errors are those of `load`."""
    with _opened(path) as (_, meta):
        return meta


def load(path: Path, prefix: str | Callable[[dict[str, Any]], str] = "") -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read the tensors whose names start with `prefix` (without it), and the JSON data, which may choose the prefix.

    A file that is missing, truncated or not one of ours gives a CheckpointError.
    """
    with _opened(path) as (file, meta):
        start = prefix if isinstance(prefix, str) else prefix(meta)
        names = [name for name in file.keys() if name.startswith(start)]  # noqa: SIM118 (not a mapping)
        return {name[len(start) :]: file.get_tensor(name) for name in names}, meta


@contextmanager
def _opened(path: Path) -> Iterator[tuple[Any, dict[str, Any]]]:
    """A file of tensors with its JSON data."""
    try:
        check_safetensors(path)
        with safe_open(path, framework="pt") as file:
            yield file, parse_json((file.metadata() or {})["meta"], "meta")
    except (OSError, SafetensorError, KeyError, TypeError, DataError) as error:
        raise CheckpointError(f"{path}: expected a weight file of this project, got: {error}") from error
