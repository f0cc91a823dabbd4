"""Writing what a stage declares: whole, or not at all."""

import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from cmcore.atomic import write_atomic


def write_json(path: Path, data: Any) -> None:
    """Sorted keys and no times, so that equal results are equal bytes."""
    write_atomic(path, (json.dumps(data, indent=1, sort_keys=True, allow_nan=False) + "\n").encode())


def write_arrays(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Named arrays as .npz; the bytes depend on the content only."""
    buffer = io.BytesIO()
    np.savez(buffer, **{name: arrays[name] for name in sorted(arrays)})  # pyright: ignore[reportArgumentType]
    write_atomic(path, buffer.getvalue())
