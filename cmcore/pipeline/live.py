"""The live view of a terminal: the stages of the pipeline, and a bar for every job that runs, below what is printed.

While the view of a pipeline is shown, everything that this process and its children write comes through a pipe, line by
line, and is printed above it. So neither a library nor a child can write into it, and none of them finds a terminal on
which it would draw bars of its own.
"""

import contextlib
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from rich.console import Console, ConsoleDimensions, ConsoleOptions, RenderResult
from rich.live import Live
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TaskID, TextColumn
from rich.table import Column
from rich.text import Text

from cmcore.edge.ray_family import on_leave
from cmcore.numbers import about, short, size

WIDEST = 100  # columns of the view, so that resizing a wider terminal wraps none of its lines
BAR = 16  # columns
TITLE = 22
PATIENCE = 1.0  # seconds for the last lines of others
PER_SECOND = 4.0  # how often it is drawn


class Terminal(Console):
    """A console on a terminal, which need not be a standard stream; the cursor is never hidden, as a kill would be."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        super().__init__(file=os.fdopen(descriptor, "w", encoding="utf-8", errors="replace", closefd=False))

    @property
    def size(self) -> ConsoleDimensions:
        """Columns and lines as they are now."""
        with contextlib.suppress(OSError):
            columns, lines = os.get_terminal_size(self._descriptor)
            if columns and lines:
                return ConsoleDimensions(columns, lines)
        return ConsoleDimensions(80, 25)

    @size.setter
    def size(self, new_size: tuple[int, int]) -> None:
        del new_size

    def show_cursor(self, show: bool = True) -> bool:
        """Leave it as it is."""
        del show
        return False


class Resizable(Live):
    """A live display that is drawn anew on a terminal that became narrower, whose old lines may be wrapped."""

    def __init__(self, view: "View", console: Console, **options: Any) -> None:
        super().__init__(view, console=console, transient=True, refresh_per_second=PER_SECOND, **options)
        self._columns = console.size.width

    def refresh(self) -> None:
        """Draw it."""
        columns = self.console.size.width
        if columns < min(self._columns, WIDEST):
            self.console.clear()
        self._columns = columns
        super().refresh()


class Counts(ProgressColumn):
    """Done of all, the rate, the time left and the last loss."""

    def render(self, task: Task) -> Text:
        """As far as they are known."""
        parts = []
        if task.total:
            parts.append(f"{size(task.completed)}/{size(task.total)} {task.fields['unit']}")
        if task.speed:
            parts.append(f"{size(task.speed)}/s")
        if task.time_remaining is not None:
            parts.append(f"{about(task.time_remaining)} left")
        if task.fields["loss"] is not None:
            parts.append(f"loss {short(task.fields['loss'])}")
        return Text(", ".join(parts), no_wrap=True, overflow="ellipsis")


class Bar:
    """The bar of a job."""

    def __init__(self, jobs: Progress, title: str, unit: str) -> None:
        self._jobs = jobs
        self._task: TaskID = jobs.add_task(title, total=None, unit=unit, loss=None)

    def at(self, done: int, total: int) -> None:
        """How far the job is. What a continued one did earlier counts as no speed."""
        self._jobs.update(self._task, completed=done, total=total)

    def loss(self, value: float) -> None:
        """The last loss."""
        self._jobs.update(self._task, loss=value)

    def close(self) -> None:
        """Remove the bar."""
        self._jobs.remove_task(self._task)


class View:
    """What is drawn.

    Args:
        console: of the terminal.
        name: of the pipeline; empty for a view of jobs alone.
        stages: those to run.
    """

    def __init__(self, console: Console, name: str = "", stages: Sequence[str] = ()) -> None:
        self.console, self._name = console, name
        self._waiting, self._total, self._end = list(stages), len(stages), 0.0
        title = Column(no_wrap=True, max_width=TITLE, overflow="ellipsis")
        self._jobs = Progress(
            TextColumn("{task.description}", table_column=title), BarColumn(bar_width=BAR),
            TextColumn("{task.percentage:>3.0f} %", table_column=Column(no_wrap=True)),
            Counts(table_column=Column(no_wrap=True, overflow="ellipsis")),
            console=console, auto_refresh=False, speed_estimate_period=30.0,
        )  # fmt: skip
        # Of a pipeline, more than these is captured.
        self._live = Resizable(self, console, redirect_stdout=not name, redirect_stderr=not name)

    def __enter__(self) -> "View":
        self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """The pipeline in two lines, and a line for every job."""
        options = options.update(width=min(options.max_width, WIDEST))
        if self._name:
            done = self._total - len(self._waiting)
            running = [task.description for task in self._jobs.tasks]
            left = f", about {about(max(0.0, self._end - time.monotonic()))} left" if self._end else ""
            yield from _line(f"{self._name}: {done} of {self._total} stages done, {len(running)} running{left}", "bold")
            begun = {title.replace(" ", "@", 1).partition("#")[0] for title in running}
            if to_come := [stage for stage in self._waiting if stage not in begun]:
                yield from _line(f"to come: {', '.join(to_come)}", "dim")
        yield from console.render(self._jobs.make_tasks_table(self._jobs.tasks), options)

    def job(self, title: str, unit: str) -> Bar:
        """A bar more."""
        return Bar(self._jobs, title, unit)

    def recorded(self, stage: str) -> None:
        """A stage is done."""
        if stage in self._waiting:
            self._waiting.remove(stage)

    def left(self, seconds: float) -> None:
        """How long the rest may take."""
        self._end = time.monotonic() + seconds

    def say(self, line: str) -> None:
        """Print a line above the view."""
        self.console.print(Text.from_ansi(line))


def _line(text: str, style: str) -> Iterator[Text]:
    yield Text(text, style=style, no_wrap=True, overflow="ellipsis")


@contextmanager
def pipeline_view(name: str, stages: Sequence[str]) -> Iterator[View]:
    """The view of a pipeline for the time of the block, in which both standard streams are captured."""
    sys.stdout.flush()
    sys.stderr.flush()
    streams = os.dup(1), os.dup(2)
    view = View(Terminal(os.dup(1)), name, stages)
    read, write = os.pipe()
    for number in (1, 2):
        os.dup2(write, number)
    os.close(write)
    reader = threading.Thread(target=_forward, args=(read, view.say), name="view", daemon=True)

    def restore(end: str = "\n") -> None:
        """The streams as they were, after the lines that are on their way; a child that lives on may hold the pipe."""
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):
                stream.flush()
        for number, stream in zip((1, 2), streams, strict=True):
            os.dup2(stream, number)
        reader.join(PATIENCE)
        os.write(1, end.encode())

    on_leave.append(restore)  # which waits for no lock
    reader.start()
    try:
        with view:
            try:
                yield view
            finally:
                on_leave.remove(restore)
                restore("")
    finally:
        for stream in streams:
            os.close(stream)


def _forward(descriptor: int, say: Callable[[str], None]) -> None:
    with os.fdopen(descriptor, encoding="utf-8", errors="replace", newline=None) as lines:
        for line in lines:
            if text := line.rstrip():
                say(text)


@contextmanager
def single_view() -> Iterator[View]:
    """The view of a job that is not of a pipeline, for the time of the block."""
    with View(Terminal(2)) as view:
        yield view
