"""A program on a pseudo-terminal, and the screen that it draws: as much of a terminal as a live view needs."""

import fcntl
import os
import pty
import re
import select
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Sequence
from pathlib import Path

SILENCE = 20.0  # seconds without any output that a program may take
CODE = re.compile(r"\x1b\[([0-9;?]*)([A-Za-z])")


class Screen:
    """Lines of a terminal that wraps long ones again when its width changes; the cursor is at a line and a column."""

    def __init__(self, columns: int) -> None:
        self.columns, self.lines, self.row, self.column = columns, [""], 0, 0
        self._rest = ""

    def write(self, text: str) -> None:
        """Draw text with its control codes."""
        text, place = self._rest + text, 0
        self._rest = ""
        while place < len(text):
            if text[place] == "\x1b":
                found = CODE.match(text, place)
                if not found:
                    self._rest = text[place:]
                    return
                self._control(found[1], found[2])
                place = found.end()
                continue
            self._put(text[place])
            place += 1

    def _control(self, numbers: str, kind: str) -> None:
        assert kind in "AKJHm", f"a code that the test's screen does not know: {numbers}{kind}"
        if kind == "A":
            self.row = max(0, self.row - int(numbers or 1))
        elif kind == "K":
            assert numbers == "2"
            self.lines[self.row] = ""
        elif kind == "J":
            assert numbers == "2"
            self.lines = [""]
        elif kind == "H":
            self.row = self.column = 0

    def _put(self, letter: str) -> None:
        if letter == "\r":
            self.column = 0
        elif letter == "\n":
            self._down()
        else:
            if self.column == self.columns:
                self.column = 0
                self._down()
            line = self.lines[self.row].ljust(self.column)
            self.lines[self.row] = line[: self.column] + letter + line[self.column + 1 :]
            self.column += 1

    def _down(self) -> None:
        self.row += 1
        if self.row == len(self.lines):
            self.lines.append("")

    def resize(self, columns: int) -> None:
        """Another width; lines that are too long are wrapped, as terminals do."""
        wrapped, row = [], 0
        for number, line in enumerate(self.lines):
            parts = [line[start : start + columns] for start in range(0, len(line.rstrip()), columns)] or [""]
            wrapped += parts
            if number == self.row:
                row = len(wrapped) - 1
        self.lines, self.row, self.columns = wrapped, row, columns
        self.column = min(self.column, columns)

    def shown(self) -> list[str]:
        """The lines that are not empty."""
        return [line.rstrip() for line in self.lines if line.strip()]


class OnTerminal:
    """A python program whose output and errors go to a pseudo-terminal."""

    def __init__(self, code: str, folder: Path, columns: int = 90, arguments: Sequence[str] = ()) -> None:
        self.screen = Screen(columns)
        self._master, slave = pty.openpty()
        self._size(columns)
        environment = {**os.environ, "TERM": "xterm", "PYTHONPATH": str(folder), "PYTHONUNBUFFERED": "1"}
        self.process = subprocess.Popen(
            [sys.executable, "-c", code, *arguments], stdout=slave, stderr=slave, stdin=subprocess.PIPE,
            cwd=folder, env=environment,
        )  # fmt: skip
        os.close(slave)

    def _size(self, columns: int) -> None:
        fcntl.ioctl(self._master, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))

    def resize(self, columns: int) -> None:
        """Another width, of terminal and screen."""
        self._size(columns)
        self.screen.resize(columns)

    def until(self, *texts: str) -> list[str]:
        """Draw until the screen shows all texts; without one, to the end."""
        pending, end = b"", time.monotonic() + 2 * SILENCE
        while not texts or not all(any(text in line for line in self.screen.shown()) for text in texts):
            if time.monotonic() > end or not select.select([self._master], [], [], SILENCE)[0]:
                raise AssertionError(f"{texts} did not come: {self.screen.shown()}")
            try:
                got = os.read(self._master, 4096)
            except OSError:  # its other end is closed
                got = b""
            if not got:
                assert not texts, f"{texts} did not come: {self.screen.shown()}"
                break
            pending += got
            try:
                self.screen.write(pending.decode())
                pending = b""
            except UnicodeDecodeError:  # a letter of several bytes is not whole yet
                assert len(pending) < 8192
        return self.screen.shown()

    def go_on(self) -> None:
        """A line of input, for which the program waits."""
        assert self.process.stdin is not None
        self.process.stdin.write(b"\n")
        self.process.stdin.flush()

    def close(self) -> None:
        """End it."""
        self.process.kill()
        self.process.communicate()
        os.close(self._master)
