"""Metrics as JSON lines, one object a line, flushed at once: the record that tables and figures are built from."""

import json
import math
import os
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


class Jsonl:
    """Appends `{"images": ..., name: value, ...}` lines to a file. Holds no times, so equal runs give equal bytes.

    Args:
        path: the file; made where it does not exist.
        resume_at: images seen in the checkpoint that the run continues from. Later lines are dropped, for the run is
            about to write them again; 0 starts a new file.
    """

    def __init__(self, path: Path, resume_at: int = 0) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        kept = [row for row in read(path) if row["images"] <= resume_at] if resume_at and path.exists() else []
        part = path.with_name(f".{path.name}.part")
        part.write_text("".join(_line(row) for row in kept), encoding="utf-8")
        part.replace(path)
        self._file = path.open("a", encoding="utf-8")

    def params(self, values: Mapping[str, Any]) -> None:
        """Not written: a history holds measurements, and the weights file holds the parameters."""

    def metrics(self, values: Mapping[str, float], images: int) -> None:
        self._file.write(_line({"images": images, **{name: float(value) for name, value in values.items()}}))
        self._file.flush()

    def artifact(self, path: Path, folder: str = "") -> None:
        """Not written: the files are there already."""

    def close(self, failed: bool = False) -> None:
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()


def _line(row: Mapping[str, Any]) -> str:
    """One line of strict JSON: numbers that JSON cannot hold become null."""
    finite = {name: None if isinstance(v, float) and not math.isfinite(v) else v for name, v in row.items()}
    return json.dumps(finite, allow_nan=False) + "\n"
