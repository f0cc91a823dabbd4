"""summary.json of a run: facts of its training, and the checksums of the other files of its results."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cmcore.atomic import write_atomic
from cmcore.bounded import parse_json
from cmcore.config import digest
from cmcore.errors import DataError
from cmcore.train.checkpoint import CheckpointError

SUMMARY = "summary.json"


def file_digest(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_summary(folder: Path, facts: Mapping[str, Any]) -> None:
    """Write the summary of the results in a folder, all of which are there."""
    files = {path.relative_to(folder).as_posix(): file_digest(path) for path in folder.rglob("*") if path.is_file()}
    summary = {**facts, "files": files}
    text = json.dumps({**summary, "checksum": digest(summary)}, indent=2, sort_keys=True)
    write_atomic(folder / SUMMARY, (text + "\n").encode())


def read_summary(folder: Path) -> dict[str, Any]:
    """The summary of the results in a folder.

    Raises:
        CheckpointError: it is missing or damaged.
    """
    path = folder / SUMMARY
    try:
        summary = parse_json(path.read_bytes(), str(path))
        mark = summary.pop("checksum")
    except (OSError, DataError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path}: expected the summary of a run, got none or a damaged one") from error
    if digest(summary) != mark:
        raise CheckpointError(f"{path}: is damaged, as it does not have its checksum")
    return summary


def check_results(folder: Path, *names: str) -> dict[str, Any]:
    """The summary, if the files it names are there and have their checksums.

    Args:
        folder: of the results.
        *names: of the files to check, as the summary names them; by default all.

    Raises:
        CheckpointError: a file is missing or damaged.
    """
    summary = read_summary(folder)
    for name in names or summary["files"]:
        path = folder / name
        if not path.is_file():
            raise CheckpointError(f"{path}: is missing")
        if file_digest(path) != summary["files"].get(name):
            raise CheckpointError(f"{path}: is damaged, as it does not have its checksum")
    return summary
