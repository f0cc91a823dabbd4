"""Functions run in this process, on a local Ray or on a cluster, with results that are the same bit for bit."""

import pickle
import queue
import signal
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from cmcore.edge.ray_session import ComputeError, Session, WorkerDiedError, connection, require_folder
from cmcore.edge.settings import ComputeConfig

Emit = Callable[[Any], None]


class Message(NamedTuple):
    """A message from a job, which sends any number of events, then a result or an error."""

    kind: Literal["event", "result", "error"]
    value: Any


def execute(compute: ComputeConfig, function: Callable[..., Any], *args: Any, progress: Emit | None = None) -> Any:
    """Call `function(*args)`, or `function(*args, emit)` where there is a `progress`, and return its result.

    Args:
        compute: where, and with how many threads.
        function: importable by name, so that another machine finds it. Paths in its arguments are absolute.
        *args: its arguments.
        progress: called in this process with every value that the function emits.

    Raises:
        ComputeError: there is no such cluster, it is too small, or the worker died.
        Exception: the function's own, with the traceback from the job as a note.
    """
    if compute.backend == "inline":
        return limited(compute.threads, function, *args, *([progress] if progress else []))
    with connection(compute) as session:
        return _on_ray(compute, session, function, args, progress)


def limited(threads: int, function: Callable[..., Any], *args: Any) -> Any:
    """Call the function with a fixed number of threads for torch and numpy, on which the last bits of sums depend."""
    import torch
    from threadpoolctl import threadpool_limits

    before = torch.get_num_threads()
    with threadpool_limits(threads):
        torch.set_num_threads(threads)
        try:
            return function(*args)
        finally:
            torch.set_num_threads(before)


def pick_device(compute: ComputeConfig) -> str:
    """The torch device for a job; to be called inside the job, on its machine.

    Raises:
        ComputeError: the device is cuda, and the machine has none.
    """
    import torch

    there = torch.cuda.is_available()
    if compute.device == "cuda" and not there:
        raise ComputeError("compute.device: expected a machine with CUDA, got one without; set it to auto or cpu")
    return "cuda" if there and compute.device != "cpu" else "cpu"


def _on_ray(
    compute: ComputeConfig, session: Session, function: Callable[..., Any], args: Sequence[Any], progress: Emit | None
) -> Any:
    import ray
    from ray.exceptions import RayError, RayTaskError

    gpus = _check_resources(compute, ray.nodes())
    job = ray.remote(num_cpus=compute.threads, num_gpus=gpus, num_returns="streaming", max_retries=0)(_serve)
    stream: Any = job.remote(function, args, progress is not None, compute.threads, session.shared_folder)
    try:
        while True:
            # A wait without an end would not notice Ctrl-C.
            if not ray.wait([stream], timeout=1.0)[0]:
                continue
            for message in ray.get(next(stream)):
                if message.kind == "result":
                    return message.value
                if message.kind == "error":
                    raise message.value
                if progress is not None:
                    progress(message.value)
    except (RayError, StopIteration) as error:
        if isinstance(error, RayTaskError):
            raise
        reason = str(error).strip().splitlines()[:1]
        raise WorkerDiedError(
            f"the worker that ran {function.__name__} died (killed, or out of memory?): {' '.join(reason)}; "
            "start again, and it continues from its last checkpoint"
        ) from error
    except BaseException:
        ray.cancel(stream, force=True)
        raise


def _check_resources(compute: ComputeConfig, nodes: list[dict[str, Any]]) -> int:
    """The number of GPUs of a job. For a node that the cluster does not have Ray would wait without end."""
    alive = [node["Resources"] for node in nodes if node["Alive"]]
    largest = max((node.get("CPU", 0) for node in alive), default=0)
    if compute.threads > largest:
        raise ComputeError(
            f"compute.threads: expected at most the {largest:g} CPUs of the largest node, got {compute.threads}"
        )
    gpus = any(node.get("GPU", 0) >= 1 for node in alive)
    if compute.device == "cuda" and not gpus:
        raise ComputeError(
            "compute.device: expected a cluster with a GPU for cuda, got one without; set it to auto or cpu"
        )
    return int(gpus and compute.device != "cpu")


def _serve(
    function: Callable[..., Any], args: Sequence[Any], emits: bool, threads: int, folder: Path | None
) -> Iterator[list[Message]]:
    """The job: the function in a thread of its own, and its messages as a stream, in batches."""
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGTERM, signal.SIGHUP):  # Ray blocks SIGINT, as a terminal sends it to the driver, too
            signal.signal(number, signal.SIG_DFL)  # Ray itself would wait for the end of the job
    messages: queue.SimpleQueue[Message] = queue.SimpleQueue()

    def emit(value: Any) -> None:
        messages.put(Message("event", value))

    def work() -> None:
        try:
            require_folder(folder)
            messages.put(Message("result", limited(threads, function, *args, *([emit] if emits else []))))
        except BaseException as error:  # `_on_ray` raises it again
            messages.put(Message("error", portable(error)))

    threading.Thread(target=work, daemon=True).start()
    ended = False
    while not ended:
        batch = [messages.get()]
        while not messages.empty():
            batch.append(messages.get())
        yield batch
        ended = batch[-1].kind != "event"


def portable(error: BaseException) -> BaseException:
    """The error with its traceback as a note, in a form that can be pickled."""
    note = "In the job:\n" + "".join(traceback.format_exception(error))
    try:
        copy = pickle.loads(pickle.dumps(error))
    except Exception:  # an exception class with a constructor of its own need not survive pickling
        copy = ComputeError(f"{type(error).__name__}: {error}")
    copy.add_note(note)
    return copy
