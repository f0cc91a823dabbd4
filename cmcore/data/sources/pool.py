"""A function applied to a stream of tasks by several processes, the results in the order of the tasks.

Every process has its own pipe and ends when that closes, also when this process is killed. Each holds one task at a
time, so no two ends can block on full pipes.
"""

import itertools
import multiprocessing
import os
import signal
from collections.abc import Callable, Iterable, Iterator
from multiprocessing.connection import Connection
from typing import Any, TypeVar

from cmcore.errors import DataError

T = TypeVar("T")
R = TypeVar("R")


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def ordered(function: Callable[[T], R], tasks: Iterable[T], workers: int, *, apart: bool = False) -> Iterator[R]:
    """function(task) for each task, in order; the first error in that order is raised.

    Args:
        function: can be pickled.
        tasks: consumed lazily; at most `workers` of them are in memory.
        workers: number of processes; 1 computes in this process.
        apart: but not if one fresh process is asked for.

    Yields:
        The results.

    Raises:
        DataError: a process was killed, for example because memory ran out.
    """
    if workers <= 1 and not apart:
        yield from map(function, tasks)
        return
    context = multiprocessing.get_context("spawn")
    pipes, processes = [], []
    try:
        for _ in range(workers):
            ours, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(theirs, function), daemon=True)
            process.start()
            theirs.close()
            pipes.append(ours)
            processes.append(process)
        yield from _in_turn(itertools.cycle(pipes), iter(tasks), workers)
    finally:
        for pipe in pipes:
            pipe.close()
        for process in processes:
            process.join()


def _in_turn(pipes: Iterator[Connection], tasks: Iterator[Any], workers: int) -> Iterator[Any]:
    waiting: list[Connection] = []
    for pipe in pipes:
        if len(waiting) == workers:
            yield _result(waiting.pop(0))
        try:
            task = next(tasks)
        except StopIteration:
            break
        _send(pipe, task)
        waiting.append(pipe)
    for pipe in waiting:
        yield _result(pipe)


def _send(pipe: Connection, task: Any) -> None:
    try:
        pipe.send(task)
    except OSError as error:
        raise DataError("a process that makes images died; is there enough memory?") from error


def _result(pipe: Connection) -> Any:
    try:
        good, value = pipe.recv()
    except (EOFError, OSError) as error:
        raise DataError("a process that makes images died; is there enough memory?") from error
    if not good:
        raise value
    return value


def _serve(pipe: Connection, function: Callable[[Any], Any]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent closes the pipe
    while True:
        try:
            task = pipe.recv()
        except (EOFError, OSError):
            return
        try:
            answer = (True, function(task))
        except Exception as error:  # it is raised in the parent
            answer = (False, error)
        try:
            pipe.send(answer)
        except OSError:
            return
