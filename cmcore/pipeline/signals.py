"""The end of a command or a stage by a signal. It imports nothing large, as every command imports it."""

import signal
import sys
from collections.abc import Callable
from types import FrameType
from typing import NoReturn

from cmcore.edge.ray_family import leave, leave_after, on_loss

SIGNALLED = 128  # exit codes above are of signals
PATIENCE = 7.0  # seconds for a clean end
# Numbers of the signals that came. Ray, where one arrives in a call of its own, ends the process with another status.
received: list[int] = []


def status(code: int) -> int:
    """The exit code of a process that ends with `code`: that of the signal which ended it, if any."""
    return SIGNALLED + received[0] if code and received else code


def stop_on_signals(line: Callable[[], str]) -> None:
    """Let SIGTERM, SIGHUP and SIGINT end this process in good order, at the latest after some seconds.

    Where a part of Ray dies, which itself takes up to a minute to notice, or a disk stays full, the process ends, too.
    All of that holds for the rest of its life, so it is for processes of a command or a stage alone.

    Args:
        line: what is said where the good order takes too long.
    """

    def stop(number: int, frame: FrameType | None) -> NoReturn:
        del frame
        received.append(number)
        leave_after(PATIENCE, SIGNALLED + number, line())
        sys.exit(SIGNALLED + number)

    def interrupt(number: int, frame: FrameType | None) -> None:
        received.append(number)
        leave_after(PATIENCE, SIGNALLED + number, line())
        signal.default_int_handler(number, frame)

    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) != signal.SIG_IGN:  # as nohup has it
            signal.signal(number, stop)
    if signal.getsignal(signal.SIGINT) in (signal.default_int_handler, signal.SIG_DFL):
        signal.signal(signal.SIGINT, interrupt)
    on_loss[:] = [lambda why: leave(1, f"{why}; {line().partition('; ')[2] or line()}")]
