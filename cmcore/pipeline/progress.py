"""Progress of a stage: a bar on a terminal, one line at the start and one at the end anywhere else."""

import logging
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from cmcore.tracking.base import Said, Tracker

Emit = Callable[[Any], None]


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


@contextmanager
def listener(title: str, unit: str, tracker: Tracker | None = None) -> Iterator[Emit]:
    """For a driver: takes what a job emits, shows how far it is and passes on what is meant for the tracker."""
    start, bar = time.monotonic(), None
    if sys.stderr.isatty():
        from tqdm import tqdm

        bar = tqdm(desc=title, unit=unit, unit_scale=True, dynamic_ncols=True, leave=False)
    else:
        print(f"{title} ...", flush=True)

    def listen(event: Any) -> None:
        if isinstance(event, Said) and tracker is not None:
            event.to(tracker)
        elif isinstance(event, Done) and bar is not None:
            bar.total = event.total
            # What a continued run did earlier must not count as speed.
            bar.initial = bar.initial or (event.done if bar.n == 0 else 0)
            bar.update(event.done - bar.n)
        elif isinstance(event, Line):
            (print if bar is None else bar.write)(f"{title}: {event.text}")

    try:
        yield listen
    finally:
        if bar is not None:
            bar.close()
    print(f"{title}: {time.monotonic() - start:.0f} s", flush=True)
