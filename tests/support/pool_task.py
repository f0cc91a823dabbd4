"""A task for a pool, in a module that its processes can import."""

import os
import signal
import time

from cmcore.errors import DataError


def halved(number: int) -> int:
    """Half of an even number; an odd one is an error, a negative one kills the process."""
    if number < 0:
        os.kill(os.getpid(), signal.SIGKILL)
    if number % 2:
        raise DataError(f"{number} is odd")
    time.sleep(0.001 * (number % 8))
    return number // 2
