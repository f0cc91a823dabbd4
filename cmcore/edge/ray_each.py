"""Several jobs on one Ray at a time, each with its share of the work."""

import queue
import threading
from collections.abc import Callable, Sequence
from typing import Any

from cmcore.edge.ray_run import execute
from cmcore.edge.ray_session import connection
from cmcore.edge.settings import ComputeConfig


def execute_each(
    compute: ComputeConfig,
    function: Callable[..., Any],
    shares: Sequence[tuple[Any, ...]],
    progress: Callable[[int, Any], None],
) -> None:
    """Call `function(*arguments, emit)` for the arguments of every share; Ray queues those beyond its resources.

    Args:
        compute: where, and with how many threads each.
        function: importable by name; its results are files.
        shares: the arguments of each call.
        progress: called in this process with the index of the share and every value that it emits.

    Raises:
        Exception: the first that any call raised; the other calls are abandoned.
    """
    ended: queue.SimpleQueue[BaseException | None] = queue.SimpleQueue()

    def call(index: int, arguments: tuple[Any, ...]) -> None:
        try:
            execute(compute, function, *arguments, progress=lambda value: progress(index, value))
        except BaseException as error:  # the main thread raises it
            ended.put(error)
        else:
            ended.put(None)

    with connection(compute):
        for index, arguments in enumerate(shares):
            # Daemons, so that an interrupt of the main thread ends them too.
            threading.Thread(target=call, args=(index, arguments), daemon=True).start()
        for _ in shares:
            if (error := ended.get()) is not None:
                raise error
