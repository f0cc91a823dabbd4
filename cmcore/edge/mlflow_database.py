"""The sqlite database of MLflow, which makes and upgrades its tables in steps and does not survive a kill between two.

A new database is made under another name and moved to its place whole. One that is there and of no use, because it is
damaged or its making was cut short, is set aside, and a new one takes its place: the files of the pipeline fill it.
"""

import logging
import os
import sqlite3
from contextlib import closing
from functools import cache
from pathlib import Path

logger = logging.getLogger(__name__)
LARGE = 2**28  # bytes beyond which the pages of a database are not all checked
BESIDE = ("", "-journal", "-wal", "-shm")  # the files of a sqlite database
PATIENCE = 5.0  # seconds for another process that writes


@cache
def prepare_database(path: Path) -> None:
    """Make the database where it is missing or of no use. Once in a process, and in one process at a time."""
    if why := _trouble(path):
        aside = path.with_name(f"{path.name}.damaged")
        for end in BESIDE:
            if (file := path.with_name(path.name + end)).exists():
                file.replace(aside.with_name(aside.name + end))
        logger.warning("%s %s: set aside as %s; `cmlab sync` fills the new one", path, why, aside.name)
    if path.exists() and path.stat().st_size:
        return
    part = path.with_name(f".{path.name}.part")
    for end in BESIDE:
        part.with_name(part.name + end).unlink(missing_ok=True)
    _make(part)
    part.replace(path)


def _make(path: Path) -> None:
    from mlflow import MlflowClient

    # A relative address has no character with a meaning in addresses but those of the file's own name.
    MlflowClient(tracking_uri=f"sqlite:///{os.path.relpath(path)}").search_experiments(max_results=1)


def _trouble(path: Path) -> str:
    """Why the database is of no use, in words; empty where it is missing, empty or of an older MLflow."""
    if not path.is_file() or not path.stat().st_size:
        return ""
    try:
        with closing(sqlite3.connect(path, timeout=PATIENCE)) as database:
            names = {name for (name,) in database.execute("select name from sqlite_master where type = 'table'")}
            if not names:
                return ""
            made = "alembic_version" in names and database.execute("select 1 from alembic_version").fetchone()
            if not made or not database.execute("select 1 from experiments").fetchone():
                return "was not finished when it was made"
            if path.stat().st_size < LARGE:
                (said,) = database.execute("pragma quick_check(1)").fetchone()
                return "" if said == "ok" else f"is damaged ({said.splitlines()[-1]})"
    except sqlite3.OperationalError as error:
        return "is damaged" if "malformed" in str(error) or "no such table" in str(error) else ""
    except sqlite3.DatabaseError as error:
        return f"is damaged ({error})"
    return ""
