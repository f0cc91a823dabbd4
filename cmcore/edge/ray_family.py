"""The processes of a local Ray: watched, and ended with the process that started them, whichever way that ends."""

import contextlib
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import psutil

LOOK = 1.0  # seconds between two looks
HEART = ("gcs_server", "raylet")  # without one of them a Ray does not work, and takes up to a minute to say so

# Called with a line where one of them has died, or something else is lost without which nothing here ever ends.
on_loss: list[Callable[[str], None]] = []
# Called before the process ends at once: what must not be left half-way on a terminal.
on_leave: list[Callable[[], None]] = []
_members: "set[psutil.Process]" = set()


@contextmanager
def family(before: "set[psutil.Process]", address: str) -> Iterator[None]:
    """Watch the processes that this one has started since `before`, for the time of the block, and end them then.

    Args:
        before: those that were there already.
        address: host:port where their Ray listens. After a SIGTERM its GCS listens no more and lives on.
    """
    members = _new(before)
    _members.update(members)
    ended = threading.Event()
    heart = [one for one in members if _is_heart(one)]
    threading.Thread(target=_watch, args=(heart, address, ended), name="ray-family", daemon=True).start()
    with mortal([one.pid for one in members]):
        try:
            yield
        finally:
            ended.set()


@contextmanager
def mortal(pids: Iterable[int]) -> Iterator[None]:
    """Let processes, and groups of processes by their negative numbers, not outlive this process during the block."""
    # A shell outlives a SIGKILL of this process, reads the end of its input then, and ends the others.
    command = ["/bin/sh", "-c", 'read _; kill -s KILL -- "$@" 2>/dev/null', "sh", *map(str, pids)]
    last = None
    with contextlib.suppress(OSError):
        last = subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True)
    try:
        yield
    finally:
        if last is not None:
            last.kill()
            last.wait()


def end_family() -> None:
    """Kill those that are left."""
    import psutil

    for process in tuple(_members):
        with contextlib.suppress(psutil.Error):
            process.kill()
    _members.clear()


def lost(why: str) -> None:
    """End this process where it is a command's own; in another one, as a notebook's, it is only said."""
    for call in on_loss or [lambda line: sys.stderr.write(f"{line}\n")]:
        call(why)


def _new(before: "set[psutil.Process]") -> "set[psutil.Process]":
    return {*_below()} - before


def _below() -> "list[psutil.Process]":
    """The processes below this one, each after its parent."""
    import psutil

    with contextlib.suppress(psutil.Error):
        return psutil.Process().children(recursive=True)
    return []


def _grow() -> None:
    """Let what members have started be members: of those whose parent dies nobody would know any more.

    What this process has started beside Ray is none of it.
    """
    import psutil

    pids = {one.pid for one in tuple(_members)}
    for one in _below():
        with contextlib.suppress(psutil.Error):
            if one.ppid() in pids:
                pids.add(one.pid)
                _members.add(one)


def _is_heart(process: "psutil.Process") -> bool:
    import psutil

    with contextlib.suppress(psutil.Error, IndexError):
        return Path(process.cmdline()[0]).name in HEART
    return False


def _refuses(address: str) -> bool:
    """Whether nothing listens at host:port. No answer in time, or none for want of a file, says nothing."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=LOOK).close()
    except ConnectionRefusedError:
        return True
    except OSError:
        pass
    return False


def _watch(heart: "list[psutil.Process]", address: str, ended: threading.Event) -> None:
    import psutil

    while not ended.wait(LOOK):
        _grow()
        if _refuses(address) and not ended.is_set():
            lost("Ray listens no more (a process of it was stopped?)")
            return
        for process in heart:
            alive = process.is_running()
            with contextlib.suppress(psutil.Error):
                alive = alive and process.status() != psutil.STATUS_ZOMBIE
            if not alive and not ended.is_set():
                lost("a process of Ray died (killed, or out of memory?)")
                return


def children() -> "set[psutil.Process]":
    """The processes below this one."""
    return _new(set())


def leave(code: int, line: str = "") -> None:
    """End this process and all below it at once, without the exit of Ray's, which may abort or wait."""
    import psutil

    for call in on_leave:
        call()
    if line:
        sys.stderr.write(f"{line}\n")
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    for process in children():
        with contextlib.suppress(psutil.Error):
            process.kill()
    end_family()
    os._exit(code)


def leave_after(seconds: float, code: int, line: str) -> None:
    """End this process after some time, if it has not ended by itself."""

    def wait() -> None:
        time.sleep(seconds)
        leave(code, line)

    threading.Thread(target=wait, daemon=True).start()
