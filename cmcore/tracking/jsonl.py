"""Histories: one JSON object a line, `{"images": ..., name: value, ...}`. No times, so equal runs give equal bytes."""

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any


def read(path: Path) -> Iterator[dict[str, Any]]:
    """The complete lines of a history; a last line that a crash cut short is left out."""
    with path.open(encoding="utf-8") as file:
        for line in file:
            if not line.endswith("\n"):
                return
            yield json.loads(line)


def line(row: Mapping[str, Any]) -> str:
    """One line of strict JSON: numbers that JSON cannot hold become null."""
    finite = {name: None if isinstance(v, float) and not math.isfinite(v) else v for name, v in row.items()}
    return json.dumps(finite, allow_nan=False) + "\n"
