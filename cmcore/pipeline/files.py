"""Writing the outputs of a stage: each whole, or not at all."""

import io
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cmcore.atomic import write_atomic


def write_json(path: Path, data: Any) -> None:
    """Sorted keys and no times, so that equal results are equal bytes."""
    write_atomic(path, (json.dumps(data, indent=1, sort_keys=True, allow_nan=False) + "\n").encode())


def write_seeds(folder: Path, seeds: Sequence[int]) -> None:
    """The list of all training seeds of a run, beside the results of all but the first."""
    write_json(folder / "seeds.json", list(seeds))


def write_arrays(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Named arrays as .npz; the bytes depend on the content only."""
    buffer = io.BytesIO()
    np.savez(buffer, **{name: arrays[name] for name in sorted(arrays)})  # pyright: ignore[reportArgumentType]
    write_atomic(path, buffer.getvalue())


def copy_into_place(copies: Mapping[Path, Path]) -> None:
    """Copy files and folders, each to its key; what was there is replaced."""
    for place, made in copies.items():
        place.parent.mkdir(parents=True, exist_ok=True)
        partial = place.with_name(f".{place.name}.partial")
        if made.is_dir():
            shutil.rmtree(partial, ignore_errors=True)
            shutil.copytree(made, partial)
            shutil.rmtree(place, ignore_errors=True)
        else:
            shutil.copyfile(made, partial)
        partial.replace(place)
