"""Whether the files at `data.path` are still those that were prepared.

DVC compares parameters, and the path stays the same when the files behind it change. To give them to DVC as a
dependency would make it read all of them. Here names, sizes and times of change are compared with a record.
"""

import hashlib
import json
from pathlib import Path

from cmcore.atomic import write_atomic
from cmcore.data.settings import DataConfig
from cmcore.data.sources.files import walk


def state(config: DataConfig) -> str:
    """Digest of names, sizes and times of change at and below the config's place; empty where there is nothing."""
    place = Path(config.place)
    if not config.place:
        return ""
    if place.is_dir():
        total = hashlib.sha256()
        for name, found in walk(place):
            about = found.stat(follow_symlinks=False)
            total.update(f"{name}\0{about.st_size} {about.st_mtime_ns}\n".encode("utf-8", "surrogateescape"))
        return total.hexdigest()
    try:
        found = place.stat()
    except OSError:
        return ""
    return hashlib.sha256(f"{found.st_size} {found.st_mtime_ns}".encode()).hexdigest()


def remember(record: Path, config: DataConfig, before: str) -> None:
    """Write down the state that the files had before they were read."""
    write_atomic(record, (json.dumps({"place": config.place, "state": before}) + "\n").encode())


def changed(record: Path, config: DataConfig) -> bool:
    """Whether the files differ from the record; not, where there is none, it is of another place, or they are gone."""
    try:
        known = json.loads(record.read_text(encoding="utf-8"))
        place, before = known["place"], known["state"]
    except (OSError, ValueError, KeyError, TypeError):
        return False
    return place == config.place and state(config) not in ("", before)
