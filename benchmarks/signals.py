"""SIGTERM, SIGINT and SIGHUP to every part of what runs, and SIGKILL to parts of Ray: all of it has to end.

It has to end within ten seconds, with the status of the signal or of an error, and with the line that says how to go
on; no process may be left. A part of Ray that was killed has to be noticed within fifteen seconds.
"""

import re
import signal
import socket
import time
import urllib.request
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import psutil

from benchmarks.kills import PARAMS, position
from benchmarks.workspace import Workspace

ENDS, NOTICED = 10.0, 15.0  # seconds from a signal until all has ended, and from the death of a part of Ray
BEGUN = 0.2  # seconds of processor time after which Python has started
STARTS = 300.0  # seconds that a start may take, on a machine that has much else to do
LONG: dict[str, Any] = {
    **PARAMS,
    "workload": "signals",
    "train": {**PARAMS["train"], "images": 50_000_000, "log_images": 5_000},
    "runs": {"edm": PARAMS["runs"]["edm"]},
}
STOPS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
GOES_ON = re.compile(r"continues from|start again")
REPRO, DVC = ("cmcore.commands", "repro", "--jobs", "1"), ("dvc", "repro", "train@edm")
Is = Callable[[list[str]], bool]  # of the words of a command line


def is_module(*words: str) -> Is:
    """Whether it is a module of Python's with these arguments."""
    return lambda line: any(line[at : at + 1 + len(words)] == ["-m", *words] for at in range(len(line)))


def is_program(name: str) -> Is:
    """Whether it is a program of this name, or a process that has taken it as its title."""
    return lambda line: Path(line[0]).name.startswith(name)


class Case(NamedTuple):
    """A signal to a part of a command."""

    name: str
    command: tuple[str, ...]
    part: Is  # which process gets it
    number: signal.Signals
    codes: tuple[int, ...]  # with which the command may end
    at_once: bool = False  # as soon as the part has begun, or once it has done some work
    line: bool = True  # whether a line has to say how to go on
    seconds: float = ENDS


def cases(port: int) -> list[Case]:
    """All of them; MLflow's server listens on the port."""
    cmlab, stage, worker = is_module(*REPRO), is_module("stages", "train", "edm"), is_program("ray::_serve")
    ui = ("cmcore.commands", "ui", "--port", str(port))
    found = []
    for number in STOPS:
        own = (128 + number,)
        found += [
            Case("cmlab repro", REPRO, cmlab, number, own),
            Case("a stage below it", REPRO, is_module("stages", "code"), number, (1,), at_once=True),
            Case("Ray's driver below dvc repro", DVC, stage, number, (1, 255)),
            Case("cmlab ui", ui, is_module(*ui), number, (0,) if number == signal.SIGINT else own, line=False),
            Case("MLflow's server", ui, is_module("mlflow", "server"), number, (0, 1), line=False),
        ]
    parts = {"Ray's worker": worker, "raylet": is_program("raylet"), "gcs_server": is_program("gcs_server")}
    # DVC and Ray leave a terminal's SIGINT to the stage and the driver, which get it as well.
    for number in (signal.SIGTERM, signal.SIGHUP):
        found.append(Case("dvc repro", DVC, is_module(*DVC), number, (-number,)))
        found += [Case(name, REPRO, part, number, (1,)) for name, part in parts.items()]
    found += [Case(name, REPRO, part, signal.SIGKILL, (1,), seconds=NOTICED) for name, part in parts.items()]
    return found


class Ended(NamedTuple):
    """What came of a case."""

    code: int
    seconds: float  # until the command had ended, and all that it had started
    left: list[str]  # what had not
    said: str


def ended(case: Case, space: Workspace) -> Ended:
    """Run a command, send the signal, and see what comes of it."""
    log = space.folder.with_name("log.txt")
    log.unlink(missing_ok=True)
    begun = position(space.folder)
    process = space.start(*case.command, log=log)
    part = _found(case, process, lambda: _works(case, space.folder, begun))
    family = _family(process)
    part.send_signal(case.number)
    start = time.monotonic()
    while time.monotonic() < start + 3 * NOTICED:
        family |= _family(process)
        if process.poll() is not None and not any(map(_runs, family)):
            break
        time.sleep(0.05)
    seconds = time.monotonic() - start
    left = [" ".join(_words(one)[:6]) for one in family if _runs(one)]
    for one in family:
        with suppress(psutil.Error):
            one.kill()
    return Ended(process.wait(), seconds, left, log.read_text(encoding="utf-8", errors="replace"))


def _found(case: Case, process: Any, works: Callable[[], bool]) -> psutil.Process:
    end = time.monotonic() + STARTS
    while time.monotonic() < end and process.poll() is None:
        for one in _family(process):
            if (words := _words(one)) and case.part(words) and (_has_begun(one) if case.at_once else works()):
                return one
        time.sleep(0.05)
    raise RuntimeError(f"{case.name}: did not come to work")


def _has_begun(process: psutil.Process) -> bool:
    """Whether it runs our code; a SIGINT while Python itself starts ends it with a traceback of Python's."""
    with suppress(psutil.Error):
        return process.cpu_times().user > BEGUN
    return False


def _works(case: Case, root: Path, begun: int) -> bool:
    """Whether training moves, or the server answers."""
    if "ui" not in case.command:
        return position(root) > begun + 1
    with suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{case.command[-1]}/health", timeout=2):
        return True
    return False


def _family(process: Any) -> set[psutil.Process]:
    with suppress(psutil.Error):
        own = psutil.Process(process.pid)
        return {own, *own.children(recursive=True)}
    return set()


def _words(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


def _runs(process: psutil.Process) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def wrong(case: Case, ended: Ended) -> list[str]:
    """What should not have come of a case."""
    faults = {
        f"took {ended.seconds:.0f} s": ended.seconds > case.seconds,
        f"left {ended.left}": bool(ended.left),
        f"ended with {ended.code}": ended.code not in case.codes,
        "does not say how to go on": case.line and not GOES_ON.search(ended.said),
        "shows a traceback": "Traceback" in ended.said,
    }
    return [fault for fault, found in faults.items() if found]


def prepared(folder: Path) -> Workspace:
    """A workspace with data, and a run without an end before it."""
    space = Workspace(folder / "project", {**LONG, "compute": {**LONG["compute"], "backend": "inline"}})
    space.call("dvc", "repro", "prepare")
    space.write(LONG)
    space.variables["RAY_worker_niceness"] = "0"  # Ray's own is that of what nobody waits for
    return space


def survive_signals(count: int, folder: Path) -> tuple[int, str]:
    """Send every signal to every part, or `count` of them; a RuntimeError says what did not end as it should.

    The result is how many there were, and after how many seconds all had ended.
    """
    space, found = prepared(folder), dict[str, list[float]]()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    every = cases(port)
    for case in every[: count or len(every)]:
        outcome = ended(case, space)
        if faults := wrong(case, outcome):
            raise RuntimeError(f"{case.number.name} to {case.name}: {'; '.join(faults)}:\n{outcome.said[-1500:]}")
        lost = case.number == signal.SIGKILL
        found.setdefault(f"{case.name} killed" if lost else case.name, []).append(outcome.seconds)
    return sum(map(len, found.values())), "all had ended after " + ", ".join(
        f"{max(seconds):.1f} s ({name}, {len(seconds)})" for name, seconds in found.items()
    )
