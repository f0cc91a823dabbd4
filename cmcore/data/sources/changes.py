"""Detection of changes in the files at `data.path` since they were prepared.

DVC compares parameters, and the path stays the same when the files behind it change. As a dependency of DVC, all of
them would be read for every run. Here names, sizes and modification times are compared with a record.
"""

import hashlib
import json
from pathlib import Path

from cmcore.atomic import write_atomic
from cmcore.data.settings import DataConfig
from cmcore.data.sources.files import walk


def state(config: DataConfig) -> str:
    """Digest of names, sizes and modification times at and below the config's place; empty where it is absent."""
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
    """Record the state that the files had before they were read."""
    write_atomic(record, (json.dumps({"place": config.place, "state": before}) + "\n").encode())


def changed(record: Path, config: DataConfig) -> bool:
    """Whether the files differ from the record. Without a record of this place, or without files, they do not."""
    try:
        known = json.loads(record.read_text(encoding="utf-8"))
        place, before = known["place"], known["state"]
    except (OSError, ValueError, KeyError, TypeError):
        return False
    return place == config.place and state(config) not in ("", before)
