"""What DVC leaves unguarded: the lock file that it writes in place, damage that sizes and times hide, full disks.

Damaged files are set aside in `.work/damaged`, one of each name, so that they can be looked at and are made again.
"""

import contextlib
import hashlib
import json
import re
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from cmcore.atomic import write_atomic
from cmcore.errors import DataError

LOCK_FILE = "dvc.lock"
KEPT, DAMAGED = Path(".work/dvc.lock"), Path(".work/damaged")
CHECKSUM = re.compile(r"[0-9a-f]{32}(\.dir)?")  # of a file or a folder in a lock file
ROOM = 2**25  # bytes that DVC needs for its own lists
NO_ROOM = 2**18  # bytes that are left where nothing can be written any more
YOUNG = 2.0  # seconds, in which the entry of a run has been written
LOOK, PATIENCE = 1.0, 10  # seconds between two looks at the disks, and looks in a row that find no room
# What a stage reads of the outputs beside files with checksums of their own, which whoever reads them checks.
READ = {
    "reference": ("data",),
    "train": ("data",),
    "evaluate": ("data", "reference"),
    "edit": ("data",),
    "tabulate": ("reference", "runs", "samples", "edits", "times"),
}
Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # ten times quicker where it was compiled


def parse_lock(content: bytes) -> dict[str, Any]:
    """The stages of a lock file, by name.

    Raises:
        ValueError: it is cut, garbled, or holds the marks of a merge.
    """
    try:
        data = yaml.load(content.decode(), Loader=Loader)
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError((str(error) or type(error).__name__).splitlines()[0]) from error
    stages = data.get("stages") if isinstance(data, dict) else None
    if not isinstance(stages, dict) or "schema" not in data:
        raise ValueError("expected a schema and stages")
    for name, stage in stages.items():
        # A cut leaves valid YAML, and an entry without its whole checksum.
        if not (isinstance(stage, dict) and "cmd" in stage and _listed(stage.get("deps", [])) and stage.get("outs")):
            raise ValueError(f"stage {name} is incomplete")
        if not _listed(stage["outs"]) or not isinstance(stage.get("params", {}), dict):
            raise ValueError(f"stage {name} is incomplete")
    if not content.endswith(b"\n"):
        raise ValueError("the end is missing")
    return stages


def _listed(entries: Any) -> bool:
    """Whether these are files with their checksums."""
    return isinstance(entries, list) and all(
        isinstance(entry, dict) and "path" in entry and CHECKSUM.fullmatch(str(entry.get("md5"))) for entry in entries
    )


def set_aside(root: Path, path: Path) -> Path:
    """Move a damaged file or folder of the project out of the way; the result is where it is."""
    target = root / DAMAGED / path.relative_to(root).as_posix().replace("/", "+")
    target.parent.mkdir(parents=True, exist_ok=True)
    if target.is_dir() and not target.is_symlink():
        shutil.rmtree(target)
    else:
        target.unlink(missing_ok=True)
    shutil.move(path, target)
    return target.relative_to(root)


def keep_lock_file(root: Path) -> None:
    """Remember the lock file that DVC has just written."""
    if (root / LOCK_FILE).is_file():
        content = (root / LOCK_FILE).read_bytes()
        if not (root / KEPT).is_file() or (root / KEPT).read_bytes() != content:
            write_atomic(root / KEPT, content)


def mend_lock_file(root: Path) -> list[str]:
    """Where the lock file is damaged, the last sound one in its place, or none; a line says so.

    Without it nothing is lost: DVC takes from its run cache what was computed before.
    """
    path = root / LOCK_FILE
    if not path.exists():
        return []
    try:
        parse_lock(path.read_bytes())
    except (ValueError, OSError) as error:
        place, sound = set_aside(root, path), _last_sound(root)
        if sound:
            write_atomic(path, sound)
        then = "the last sound one takes its place" if sound else "results are looked for in DVC's cache"
        return [f"{LOCK_FILE} was damaged ({' '.join(str(error).split())[:120]}): set aside as {place}; {then}"]
    return []


def mend_dvc_folder(root: Path) -> list[str]:
    """Remove DVC's list of who reads and writes where a kill left half of it; a line says so."""
    path = root / ".dvc" / "tmp" / "rwlock"
    try:
        text = path.read_bytes()
        if not text or isinstance(json.loads(text), dict):
            return []
    except FileNotFoundError:
        return []
    except ValueError:
        pass
    path.unlink(missing_ok=True)
    return [f"{path.relative_to(root)} was damaged, and removed: no DVC runs here"]


def mend_run_cache(runs: Path) -> list[str]:
    """Remove what a kill or a full disk left half-way in DVC's cache of runs; a line says so.

    DVC fails wherever it comes upon a folder there without an entry. Checkouts that share the cache may be about to
    write one: so nothing young goes.

    Args:
        runs: the folder of the cache, with a folder for each state of a stage's inputs.
    """
    lines = list[str]()
    for folder in runs.glob("*/*"):
        with contextlib.suppress(OSError):  # another checkout was faster
            parts = list(folder.glob(".*.tmp"))
            if not parts and any(folder.iterdir()):
                continue
            newest = max(path.stat().st_mtime for path in (folder, *parts))
            time.sleep(min(YOUNG, max(0.0, newest + YOUNG - time.time())))
            for part in parts:
                part.unlink(missing_ok=True)
            if not any(folder.iterdir()):
                folder.rmdir()
            lines.append(f"{folder.name[:8]} in DVC's cache of runs was half-written, and removed")
    return lines


def full_disk(places: Iterable[Path], room: int = ROOM) -> str:
    """The line about the first of the places on whose disk less is left; empty where there is none."""
    for place in places:
        with contextlib.suppress(OSError):  # it is not there
            if (free := shutil.disk_usage(place).free) < room:
                return f"the disk of {place} is full ({free} bytes are left); free some space, and start again"
    return ""


@contextlib.contextmanager
def watched(places: Sequence[Path], end: Callable[[str], None]) -> Iterator[None]:
    """Call `end` with a line where a disk stays full during the block: DVC would try for ever to write its lists there.

    Args:
        places: on the disks.
        end: called in another thread.
    """
    over = threading.Event()

    def look() -> None:
        found = 0
        while not over.wait(LOOK):
            line = full_disk(places, NO_ROOM)
            found = found + 1 if line else 0
            if found == PATIENCE:
                end(line)
                return

    threading.Thread(target=look, name="disks", daemon=True).start()
    try:
        yield
    finally:
        over.set()


def _last_sound(root: Path) -> bytes | None:
    """The lock file as it was remembered, or as git has it."""
    command = ["git", "-C", str(root), "show", f"HEAD:./{LOCK_FILE}"]
    kept = (root / KEPT).read_bytes() if (root / KEPT).is_file() else b""
    try:
        committed = subprocess.run(command, capture_output=True, check=False).stdout
    except OSError:  # there is no git
        committed = b""
    for content in (kept, committed):
        try:
            parse_lock(content)
        except ValueError:
            continue
        return content
    return None


def md5(path: Path) -> str:
    """The checksum that DVC gives a file or a folder, from all of its bytes."""
    if path.is_dir():
        files = sorted((file.relative_to(path).as_posix(), file) for file in path.rglob("*") if file.is_file())
        listed = [{"md5": md5(file), "relpath": name} for name, file in files]
        return hashlib.md5(json.dumps(listed, sort_keys=True).encode()).hexdigest() + ".dir"
    with path.open("rb") as file:
        return hashlib.file_digest(file, "md5").hexdigest()


def remove_damaged(cache: Path, name: str) -> None:
    """Remove an object from DVC's cache, and those that it lists, where they are not what their names say.

    Other checkouts may share the cache, and do the same.
    """

    def place(name: str) -> Path:
        return cache / name[:2] / name[2:]

    listed: list[str] = []
    if name.endswith(".dir"):
        try:
            listed = [entry["md5"] for entry in json.loads(place(name).read_bytes())]
        except (OSError, ValueError, KeyError, TypeError):  # then it is removed itself
            listed = []
    for one in (name, *listed):
        with contextlib.suppress(FileNotFoundError):
            if md5(place(one)) != one.removesuffix(".dir"):
                place(one).unlink()


class Checksums:
    """Comparison of results with DVC's checksums; a file is read once, as long as its size and time stay the same."""

    def __init__(self) -> None:
        self._known: dict[tuple[Any, ...], str] = {}

    def damaged(self, root: Path, wanted: Mapping[str, str]) -> list[str]:
        """Those of the paths that are there and differ.

        Args:
            root: what the paths are relative to.
            wanted: the checksum of every path.
        """
        return [
            path for path, checksum in wanted.items() if (root / path).exists() and self._of(root / path) != checksum
        ]

    def _of(self, path: Path) -> str:
        files = sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]
        stats = [file.stat() for file in files]
        key = (path, *((s.st_ino, s.st_size, s.st_mtime_ns, s.st_ctime_ns) for s in stats))
        if key not in self._known:
            self._known[key] = md5(path)
        return self._known[key]


def recorded(stages: Mapping[str, Any], read: Iterable[str], but: Container[str] = ()) -> dict[str, str]:
    """The checksum of every result that some paths are, hold or lie in.

    Args:
        stages: of a lock file.
        read: the paths.
        but: names of stages whose results do not count, as they are made again.
    """
    made = {entry["path"]: entry["md5"] for name, stage in stages.items() if name not in but for entry in stage["outs"]}
    wanted = [(path, f"{path}/") for path in read]
    return {
        out: checksum
        for out, checksum in made.items()
        if any(out == path or out.startswith(below) or path.startswith(f"{out}/") for path, below in wanted)
    }


def check_inputs(root: Path, outputs: Path, kind: str) -> None:
    """Set aside what a stage is about to read and is not what DVC recorded, which by itself believes sizes and times.

    Args:
        root: the project folder.
        outputs: those of the workload.
        kind: of the stage.

    Raises:
        DataError: something was damaged.
    """
    try:
        stages = parse_lock((root / LOCK_FILE).read_bytes())
    except (OSError, ValueError):  # there is none yet, or DVC has said so
        return
    read = [(outputs / name).relative_to(root).as_posix() for name in READ.get(kind, ())]
    if damaged := Checksums().damaged(root, recorded(stages, read)):
        places = ", ".join(f"{path} (set aside as {set_aside(root, root / path)})" for path in damaged)
        raise DataError(f"expected inputs as DVC recorded them, got {places}; start again, and they are made again")
