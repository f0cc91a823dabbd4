"""One pipeline at a time in a checkout, and in work folders that several checkouts or machines share."""

import errno
import fcntl
import json
import os
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

import psutil

from cmcore.edge.ray_session import ComputeError
from cmcore.errors import printable

FILE = Path(".work/running")
HOLDER = "CMLAB_TURN"  # names the process that has the turn, for the processes that it starts


@contextmanager
def turn(root: Path, command: str, *, wait: bool) -> Iterator[None]:
    """Have the turn for the time of the block. A process that one with the turn has started has it, too.

    The kernel ends a turn with the process that has it, however that ends.

    Args:
        root: the project folder.
        command: what this process does, for those that wait.
        wait: for another process that has the turn, and say so; otherwise refuse.

    Raises:
        ComputeError: another process has the turn, or nothing can be written here.
    """
    if os.environ.get(HOLDER, "") in {str(parent.pid) for parent in psutil.Process().parents()}:
        yield
        return
    path = root / FILE
    with _opened(path) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            if not wait:
                raise ComputeError(
                    f"{_holder(path)} works in {path.parent}; wait for it to end, as `cmlab repro --wait` does"
                ) from error
            print(f"waiting: {_holder(path)} works in {path.parent}", file=sys.stderr, flush=True)
            fcntl.flock(file, fcntl.LOCK_EX)
        facts = {"command": command, "pid": os.getpid(), "host": socket.gethostname(), "since": time.strftime("%F %T")}
        file.truncate(0)
        file.write(json.dumps(facts))
        file.flush()
        os.environ[HOLDER] = str(os.getpid())
        try:
            yield
        finally:
            os.environ.pop(HOLDER, None)
            file.truncate(0)


def _opened(path: Path) -> TextIO:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return path.open("a+", encoding="utf-8")
    except OSError as error:
        if error.errno not in (errno.EROFS, errno.EACCES, errno.EPERM):
            raise
        raise ComputeError(
            f"expected a project folder to work in, but {path.parent} cannot be written to ({error.strerror}); "
            "work in a copy of it"
        ) from error


def _holder(path: Path) -> str:
    """Who has the turn, in words."""
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
        return printable(f"`{facts['command']}` (process {facts['pid']} on {facts['host']}, since {facts['since']})")
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"
