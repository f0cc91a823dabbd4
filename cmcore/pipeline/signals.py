"""The end of a command or a stage by a signal. It imports nothing large, as every command imports it."""

import signal
import sys
from collections.abc import Callable
from types import FrameType
from typing import NoReturn

from cmcore.edge.ray_family import leave, leave_after, on_loss

PATIENCE = 7.0  # seconds for a clean end


def stop_on_signals(line: Callable[[], str]) -> None:
    """Let SIGTERM, SIGHUP and SIGINT end this process in good order, at the latest after some seconds.

    Where a part of Ray dies, which itself takes up to a minute to notice, the process ends, too.

    Args:
        line: what is said where the good order takes too long.
    """

    def stop(number: int, frame: FrameType | None) -> NoReturn:
        del frame
        leave_after(PATIENCE, 128 + number, line())
        sys.exit(128 + number)

    def interrupt(number: int, frame: FrameType | None) -> None:
        leave_after(PATIENCE, 128 + number, line())
        signal.default_int_handler(number, frame)

    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) != signal.SIG_IGN:  # as nohup has it
            signal.signal(number, stop)
    if signal.getsignal(signal.SIGINT) == signal.default_int_handler:
        signal.signal(signal.SIGINT, interrupt)
    on_loss[:] = [lambda why: leave(1, f"{why}; {line().partition('; ')[2] or line()}")]
