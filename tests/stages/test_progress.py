"""The progress of a pipeline on a pseudo-terminal, and the lines that a pipe gets."""

import os
import pty
import subprocess
import sys
from collections.abc import Iterator

import pytest
from terminal import OnTerminal, Screen

from cmcore.closure import ROOT
from cmcore.numbers import about

pytest.importorskip("rich")
pytestmark = pytest.mark.timeout(120)

PIPELINE = """
import os, subprocess, sys, time
from cmcore.pipeline.progress import Done, Line, listener, pipeline
from cmcore.tracking.base import Said

with pipeline("digits", ["prepare", "train@rf", "train@edm", "tabulate"]) as view:
    if view:
        view.left(120)
    with listener("prepare", ""):
        child = "import os, sys; print('a child', sys.stdout.isatty(), flush=True); os.write(2, b'its error\\\\n')"
        subprocess.run([sys.executable, "-c", child])
    print("[1/4] prepare", flush=True)
    if view:
        view.recorded("prepare")
    with listener("train rf#1", "img") as listen:
        listen(Done(0, 4000))
        listen(Done(1000, 4000))
        listen(Said("metrics", ({"train/loss": 0.12345, "train/other": 9.0}, 1000)))
        listen(Line("compiling took 3 s"))
        sys.stdin.readline()
    with listener("train edm", "img"):
        pass
    sys.stdin.readline()
print("the table")
"""
QUIET = [
    "prepare ...", "a child False", "its error", "prepare: 0 s", "[1/4] prepare", "train rf#1 ...",
    "train rf#1: compiling took 3 s", "train rf#1: 0 s", "train edm: kept", "the table",
]  # fmt: skip


@pytest.fixture
def terminal() -> Iterator[OnTerminal]:
    made = OnTerminal(PIPELINE, ROOT)
    yield made
    made.close()


def piped(code: str, stderr: int = subprocess.STDOUT) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-u", "-c", code], cwd=ROOT, input="\n\n", text=True, check=True, timeout=100,
        stdout=subprocess.PIPE, stderr=stderr, env={**os.environ, "TERM": "xterm", "PYTHONPATH": str(ROOT)},
    )  # fmt: skip


def test_a_pipe_gets_a_line_at_start_and_end_and_no_time_of_what_was_kept():
    assert piped(PIPELINE).stdout.splitlines() == QUIET


def test_of_a_terminal_whose_output_goes_through_tee_nothing_is_drawn_on():
    """Standard error is still the terminal there."""
    master, slave = pty.openpty()
    try:
        done = piped(PIPELINE, stderr=slave)
        os.close(slave)
        assert done.stdout.splitlines() == [line for line in QUIET if line != "its error"]
        assert os.read(master, 4096) == b"its error\r\n"
    finally:
        os.close(master)


def test_a_terminal_shows_stages_bars_rates_and_losses_once(terminal: OnTerminal):
    assert terminal.until("loss 0.123", "compiling") == [
        "a child False",
        "its error",
        "[1/4] prepare",
        "train rf#1: compiling took 3 s",
        f"digits: 1 of 4 stages done, 1 running, about {about(120)} left",
        "to come: train@edm, tabulate",
        f"train rf#1 {'━' * 4}{terminal.screen.shown()[-1][15:].partition(' ')[0]}  25 % 1k/4k img, loss 0.123",
    ]
    terminal.go_on()
    terminal.go_on()
    # The view goes, and what was printed above it stays.
    assert terminal.until() == [
        "a child False",
        "its error",
        "[1/4] prepare",
        "train rf#1: compiling took 3 s",
        "the table",
    ]
    assert terminal.process.wait(30) == 0


@pytest.mark.parametrize("columns", [40, 120])
def test_another_width_leaves_no_old_lines(terminal: OnTerminal, columns: int):
    terminal.until("loss 0.123", "compiling")
    terminal.resize(columns)
    terminal.go_on()
    shown = terminal.until("to come: train@rf, train@edm, tabulate", "0 running")
    assert [line for line in shown if "stages done" in line] == [shown[-2]]
    assert shown[-1] == "to come: train@rf, train@edm, tabulate"
    assert not any("train rf#1 ━" in line for line in shown)
    assert max(map(len, shown)) <= columns


def test_lines_of_an_end_at_once_come_through():
    code = """
from cmcore.edge.ray_family import leave
from cmcore.pipeline.progress import listener, pipeline
with pipeline("digits", ["train@rf"]):
    with listener("train rf", "img"):
        print("before", flush=True)
        leave(143, "cmlab repro: stopped")
"""
    terminal = OnTerminal(code, ROOT)
    try:
        shown = terminal.until()
        assert shown[0] == "before"
        assert shown[-1] == "cmlab repro: stopped"
        assert terminal.process.wait(30) == 143
    finally:
        terminal.close()


def test_an_error_ends_the_view_and_is_shown():
    code = """
from cmcore.pipeline.progress import listener, pipeline
with pipeline("digits", ["train@rf"]):
    with listener("train rf", "img"):
        raise SystemExit("the reason")
"""
    terminal = OnTerminal(code, ROOT)
    try:
        assert terminal.until() == ["the reason"]
    finally:
        terminal.close()


def test_the_screen_of_the_tests_wraps_moves_and_erases():
    screen = Screen(4)
    screen.write("abcdef\r\nx\x1b[1A\r\x1b[2Ky")
    assert screen.shown() == ["abcd", "y", "x"]
    screen.resize(2)
    assert screen.shown() == ["ab", "cd", "y", "x"]
