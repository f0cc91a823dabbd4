"""Progress of a stage: a bar on a terminal, one line at the start and one at the end anywhere else."""

import contextlib
import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from cmcore.tracking.base import Said, Tracker

if TYPE_CHECKING:
    from cmcore.pipeline.live import View

Emit = Callable[[Any], None]
LOSS = "train/loss"
MAY_BE_KEPT = ("train ", "evaluate ")  # titles of jobs whose results may stand from before
KEPT_WITHIN = 0.5  # seconds


class Done(NamedTuple):
    """How far a job is."""

    done: int
    total: int


class Line(NamedTuple):
    """A line to show."""

    text: str


class _Speaker(logging.Handler):
    """Emits what is logged."""

    def __init__(self, emit: Emit) -> None:
        super().__init__(logging.INFO)
        self._emit = emit

    def emit(self, record: logging.LogRecord) -> None:
        self._emit(Line(record.getMessage()))


@contextmanager
def spoken(emit: Emit) -> Iterator[None]:
    """For a job: what the project logs in the block is shown by the driver, and nowhere else."""
    logger, speaker = logging.getLogger("cmcore"), _Speaker(emit)
    before = logger.level, logger.propagate
    logger.addHandler(speaker)
    logger.setLevel(logging.INFO)
    logger.propagate = False
    try:
        yield
    finally:
        logger.removeHandler(speaker)
        logger.setLevel(before[0])
        logger.propagate = before[1]


def reporter(emit: Emit, pause: float = 0.2) -> Callable[[int, int], None]:
    """For a job: a progress function that speaks only now and then, and at the end."""
    last = 0.0

    def report(done: int, total: int) -> None:
        nonlocal last
        now = time.monotonic()
        if done >= total or now - last >= pause:
            last = now
            emit(Done(done, total))

    return report


def added(listen: Emit, jobs: int) -> Callable[[int, Any], None]:
    """For a driver of several jobs: listens to each by its number, and passes on how far they are together."""
    each = [Done(0, 0)] * jobs

    def hear(job: int, event: Any) -> None:
        if not isinstance(event, Done):
            listen(event)
            return
        each[job] = event
        listen(Done(sum(one.done for one in each), sum(one.total for one in each)))

    return hear


def on_terminal() -> bool:
    """Whether both of what this process says and its errors go to a terminal that can move its cursor."""
    return sys.stdout.isatty() and sys.stderr.isatty() and os.environ.get("TERM", "dumb") not in ("dumb", "unknown")


class Shown(Protocol):
    """Where a job is shown."""

    def at(self, done: int, total: int) -> None:
        """How far it is."""
        ...

    def loss(self, value: float) -> None:
        """Its last loss."""
        ...

    def close(self) -> None:
        """It ended."""
        ...


class Quiet:
    """A line when a job starts. Where results of before may stand, that is known once it speaks, or takes its time."""

    def __init__(self, title: str) -> None:
        self._title, self._lock, self._told, self.spoke = title, threading.Lock(), False, False
        self._timer = threading.Timer(KEPT_WITHIN, self._tell)
        self._timer.daemon = True
        if title.startswith(MAY_BE_KEPT):
            self._timer.start()
        else:
            self._tell()

    def _tell(self) -> None:
        with self._lock:
            if not self._told:
                print(f"{self._title} ...", flush=True)
            self._told = True

    def at(self, done: int, total: int) -> None:
        del done, total
        self.spoke = True
        self._tell()

    def loss(self, value: float) -> None: ...

    def close(self) -> None:
        self._timer.cancel()

    def ended(self, seconds: float) -> str:
        """What is said of a job without an error."""
        kept = self._title.startswith(MAY_BE_KEPT) and not self.spoke and seconds < KEPT_WITHIN
        return "kept" if kept else f"{seconds:.0f} s"


view: list["View"] = []  # that of the pipeline, while there is one


@contextmanager
def pipeline(name: str, stages: Sequence[str]) -> "Iterator[View | None]":
    """The stages of a pipeline, shown live on a terminal for the time of the block; elsewhere every job says lines."""
    if not on_terminal():
        yield None
        return
    from cmcore.pipeline.live import pipeline_view

    with pipeline_view(name, stages) as shown:
        view.append(shown)
        try:
            yield shown
        finally:
            view.clear()


@contextmanager
def listener(title: str, unit: str, tracker: Tracker | None = None) -> Iterator[Emit]:
    """For a driver: takes what a job emits, shows how far it is and passes on what is meant for the tracker."""
    with contextlib.ExitStack() as stack:
        quiet: Quiet | None = None
        if view:
            shown: Shown = view[0].job(title, unit)
        elif on_terminal():
            from cmcore.pipeline.live import single_view

            shown = stack.enter_context(single_view()).job(title, unit)
        else:
            shown = quiet = Quiet(title)
        start = time.monotonic()

        def listen(event: Any) -> None:
            if isinstance(event, Said):
                if event.method == "metrics" and (loss := event.arguments[0].get(LOSS)) is not None:
                    shown.loss(loss)
                if tracker is not None:
                    event.to(tracker)
            elif isinstance(event, Done):
                shown.at(event.done, event.total)
            elif isinstance(event, Line):
                print(f"{title}: {event.text}", flush=True)

        try:
            yield listen
        finally:
            shown.close()
        seconds = time.monotonic() - start
    if quiet:
        print(f"{title}: {quiet.ended(seconds)}", flush=True)
    elif not view:
        print(f"{title}: {seconds:.0f} s", flush=True)
