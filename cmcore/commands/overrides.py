"""Options of `cmlab repro`: parameters that differ from params.yaml for one run of the pipeline.

DVC and its stages read params.yaml, so the file itself changes while they run and is put back afterwards. A process
that is killed cannot put it back: the original lies in `.work/.set/` until the next command does. A lock on that
folder, which the kernel releases when its holder dies, tells a run that was killed from one that goes on.
"""

import fcntl
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cmcore.atomic import write_atomic
from cmcore.commands.place import CommandError
from cmcore.config import PARAMS, ConfigError, load_yaml, merge, parse_yaml

FOLDER = Path(".work/.set")
ORIGINAL, OVERRIDDEN, LOCK = "original.yaml", "overridden.yaml", "lock"


def parse(assignments: Sequence[str]) -> dict[str, Any]:
    """`["a.b=1", "a.c=x"]` as `{"a": {"b": 1, "c": "x"}}`; of two values for one key the later one holds.

    Raises:
        ConfigError: an assignment has no key or no `=`, or its value is not YAML.
    """
    changes: dict[str, Any] = {}
    for text in assignments:
        key, equals, written = text.partition("=")
        names = key.strip().split(".")
        if not equals or not all(names):
            raise ConfigError("--set", f"expected KEY=VALUE, as in runs.ect.options.q=8, got {text!r}")
        value = parse_yaml(written, key.strip())
        for name in reversed(names):
            value = {name: value}
        changes = merge(changes, value)
    return changes


@contextmanager
def overriding(
    root: Path, assignments: Sequence[str], runs: Sequence[str] = (), source: Path | None = None
) -> Iterator[None]:
    """params.yaml with these values, and with these runs alone, for the time of the block; its comments are kept.

    Args:
        root: folder of the project.
        assignments: texts KEY=VALUE.
        runs: names of runs, which bring those that they start from or learn from; by default all.
        source: a parameter file that takes the place of params.yaml.

    Raises:
        ConfigError: a value is wrong, with its dotted path; the file was not touched.
        CommandError: another such run goes on.
    """
    from cmcore.assemble.project import parse_project
    from cmcore.commands.parameter_file import changed, left_out, without, write_checked

    changes, params, folder = parse(assignments), root / PARAMS, root / FOLDER
    with _held(folder) as held:
        if not held:
            raise CommandError("another `cmlab repro --set` is running in this project; wait for it to end")
        base = source or params
        expected = merge(load_yaml(base), changes)
        dropped = left_out(expected, runs) if runs else {}
        expected = without(expected, dropped)
        parse_project(expected)
        before = params.read_bytes()
        after = changed(base.read_text(encoding="utf-8"), changes, dropped)
        # Before the file changes, as from then on nothing may go wrong without a trace of the original.
        write_atomic(folder / OVERRIDDEN, after.encode())
        write_atomic(folder / ORIGINAL, before)
        try:
            write_checked(params, after, expected)
            yield
        finally:
            for line in _put_back(root):
                print(line, flush=True)


def running(root: Path) -> bool:
    """Whether a run with overridden parameters goes on."""
    if not (root / FOLDER / ORIGINAL).is_file():
        return False
    with _held(root / FOLDER) as held:
        return not held


def left_over(root: Path) -> bool:
    """Whether a run with overridden parameters was killed before it put params.yaml back."""
    return (root / FOLDER / ORIGINAL).is_file() and not running(root)


def recover(root: Path) -> list[str]:
    """Put params.yaml back after a run with overridden parameters that was killed, and say so."""
    if not (root / FOLDER / ORIGINAL).is_file():
        return []
    with _held(root / FOLDER) as held:
        lines = _put_back(root) if held else []
    return [f"a `cmlab repro --set` was killed: {line}" for line in lines]


def _put_back(root: Path) -> list[str]:
    """The original in its place, unless somebody has edited the overridden file since; silent where all went well."""
    params, folder = root / PARAMS, root / FOLDER
    original, overridden = ((folder / name).read_bytes() for name in (ORIGINAL, OVERRIDDEN))
    present = params.read_bytes() if params.is_file() else overridden
    if present not in (original, overridden):
        kept = folder / "kept.yaml"
        (folder / ORIGINAL).replace(kept)
        return [f"{PARAMS} was edited meanwhile and stays as it is; before that it was {kept.relative_to(root)}"]
    if present != original:
        write_atomic(params, original)
    (folder / ORIGINAL).unlink()
    (folder / OVERRIDDEN).unlink()
    return [f"{PARAMS} is as it was"]


@contextmanager
def _held(folder: Path) -> Iterator[bool]:
    """Whether the lock on the folder could be taken; it is held for the time of the block."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / LOCK).open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        yield True
