"""Compiled networks: how long compiling took, and training that goes on where it fails.

What is said goes to the logger "cmcore", one line each; the pipeline shows it.
"""

import logging
import time
from collections.abc import Callable, Iterable
from typing import TypeVar

import torch
from torch import nn

from cmcore.errors import reason
from cmcore.train.gate import NonFiniteError

LOG = logging.getLogger("cmcore.compile")
T = TypeVar("T")


class Clock:
    """Seconds in which this process compiled, over all threads and nested calls."""

    def __init__(self) -> None:
        self._watching, self._depth, self._start, self._spent = False, 0, 0.0, 0.0

    @property
    def seconds(self) -> float:
        """Until now."""
        return self._spent + (time.monotonic() - self._start if self._depth else 0.0)

    def watch(self) -> None:
        """Count from now on."""
        if self._watching:
            return
        from torch._dynamo import callback  # takes a second, and is of use to compiled networks alone

        self._watching = True
        callback.on_compile_start(self._begun)
        callback.on_compile_end(self._ended)

    def _begun(self, _: object) -> None:
        if self._depth == 0:
            self._start = time.monotonic()
        self._depth += 1

    def _ended(self, _: object) -> None:
        self._depth -= 1
        if self._depth == 0:
            self._spent += time.monotonic() - self._start


CLOCK = Clock()


def or_plain(modules: Iterable[nn.Module], compute: Callable[[], T]) -> T:
    """The result of `compute`; where it fails with compiled networks, once more without, and from then on.

    Compiling may fail at the first call, and at any later one with other shapes. Whatever else went wrong comes again.

    Args:
        modules: those that hold the networks.
        compute: may be repeated: it changes nothing before it has succeeded.

    Raises:
        NonFiniteError, torch.OutOfMemoryError: not repeated.
        Exception: that of `compute` without compiled networks.
    """
    try:
        return compute()
    except (NonFiniteError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        if not plain_again(modules):
            raise
        why = f"{type(error).__name__}: {reason(error)}"
        LOG.warning("networks run uncompiled, as compiling failed; train.compile: false avoids it (%s)", why)
    return compute()


def plain_again(modules: Iterable[nn.Module]) -> bool:
    """Let modules that were compiled in place, and those in them, run as they are; whether there were any."""
    found = [m for module in modules for m in module.modules() if m._compiled_call_impl is not None]
    for module in found:
        module._compiled_call_impl = None
    return bool(found)
