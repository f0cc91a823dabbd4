"""A function on several workers at once, with Ray Train: each computes its share, and rank 0 reports and writes.

Ray Train places the workers, connects them (gloo between CPUs, NCCL between GPUs) and restarts all of them when one
dies. The state of a run is read from the run's own files and never from Ray.
"""

import os
import shutil
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from cmcore.edge.ray_run import Emit, Message, limited, portable
from cmcore.edge.ray_session import ComputeError, WorkerDiedError, connection, require_folder
from cmcore.edge.settings import ComputeConfig

RESTARTS = 5  # of all workers, after one has died
PATIENCE = 60.0  # seconds that the cluster may be too small for the workers, after the loss of a node
POLL = 0.2  # seconds between two looks into the mailbox
# Starts, ends and failures are noticed with this resolution; Ray's default is two seconds.
ENVIRONMENT = {"RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5"}


class PeerLostError(RuntimeError):
    """Another worker was lost. All of them restart from the last checkpoint."""


class Mailbox:
    """An actor beside the driver that holds the workers' messages until the driver reads them; it outlives them."""

    def __init__(self) -> None:
        self._messages: list[Message] = []
        self._failed = False

    def add(self, message: Message) -> None:
        """Add a message."""
        self._failed |= message.kind == "error"
        self._messages.append(message)

    def read(self) -> list[Message]:
        """The messages since the last call."""
        messages, self._messages = self._messages, []
        return messages

    def failed(self) -> bool:
        """Whether the function raised an error, which a restart would raise again."""
        return self._failed


def execute_together(
    compute: ComputeConfig, folder: Path, function: Callable[..., Any], *args: Any, progress: Emit
) -> Any:
    """Call `function(*args, emit, worker)` on `compute.workers` workers and return the result of rank 0.

    Args:
        compute: where, with how many workers, and with how many threads each.
        folder: of the run, on storage that all workers share. Its name holds the fingerprint and is Ray's name of the
            run: under the same name Ray resumes silently, so a changed run needs another.
        function: importable by name. Called again after the death of a worker, it resumes from its own checkpoint.
        *args: its arguments; paths are absolute.
        progress: called in this process with every value that rank 0 emits.

    Returns:
        The result of rank 0.

    Raises:
        ComputeError: there is no such cluster, it is too small, PyTorch is too old, or workers died too often.
        Exception: the function's own, with the traceback from the worker as a note.
    """
    if compute.shard:
        check_sharding()
    os.environ |= ENVIRONMENT
    with connection(compute) as session:
        import ray
        from ray.exceptions import RayError
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        gpus = check_capacity(compute, ray.nodes())
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        actor: Any = ray.remote(num_cpus=0)(Mailbox)
        mailbox = actor.options(scheduling_strategy=here).remote()
        needed = session.shared_folder
        try:
            fit = _Fit(compute, gpus, folder, lambda: _work(mailbox, function, args, compute, needed))
            return _result(compute, mailbox, fit, progress)
        except RayError as error:
            raise _explained(error) from error
        finally:
            ray.kill(mailbox)


class _Fit(threading.Thread):
    """Ray Train's blocking `fit` in a thread of its own; `error` is its exception, if it raised one."""

    def __init__(self, compute: ComputeConfig, gpus: int, folder: Path, work: Callable[[], None]) -> None:
        from ray.train import FailureConfig, RunConfig, ScalingConfig
        from ray.train.torch import TorchTrainer
        from ray.train.v2.api.config import LoggingConfig

        super().__init__(name="ray-train", daemon=True)
        storage = folder / ".ray"
        # Runs resume from their own checkpoints, not from Ray's state of an earlier fit.
        shutil.rmtree(storage, ignore_errors=True)
        self.error: BaseException | None = None
        self._storage = storage
        self._trainer = TorchTrainer(
            work,
            scaling_config=ScalingConfig(
                num_workers=compute.workers,
                use_gpu=bool(gpus),
                resources_per_worker={"CPU": compute.threads, **({"GPU": 1} if gpus else {})},
            ),
            run_config=RunConfig(
                name=folder.name,
                storage_path=str(storage),
                failure_config=FailureConfig(max_failures=RESTARTS),
                logging_config=LoggingConfig(log_level="ERROR"),
            ),
        )
        self.start()

    def run(self) -> None:
        try:
            self._trainer.fit()
        except BaseException as error:  # `_result` raises it as a ComputeError
            self.error = error
        shutil.rmtree(self._storage, ignore_errors=True)


def _result(compute: ComputeConfig, mailbox: Any, fit: _Fit, progress: Emit) -> Any:
    """Forward the events of rank 0 until all workers have ended, and return its result."""
    import ray

    ended, missing_since, result = False, 0.0, None
    while not ended:
        ended = not fit.is_alive()  # before the last messages are read
        for message in ray.get(mailbox.read.remote()):
            if message.kind == "event":
                progress(message.value)
            elif message.kind == "error":
                raise message.value
            else:
                result = message
        enough = capacity(compute, ray.nodes()) >= compute.workers
        missing_since = 0.0 if enough else missing_since or time.monotonic()
        if missing_since and time.monotonic() - missing_since > PATIENCE:
            raise ComputeError(
                f"the cluster has lost a node and has no room left for compute.workers = {compute.workers}; "
                "start again when it has, and the run continues from its last checkpoint"
            )
        fit.join(POLL)
    if result is None:
        raise _explained(fit.error) from fit.error
    return result.value


def _explained(error: BaseException | None) -> ComputeError:
    from ray.train import WorkerGroupError

    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    reason = lines[-1] if lines else "no reason given"
    if isinstance(error, WorkerGroupError):
        kind, what = WorkerDiedError, f"the workers died {RESTARTS + 1} times (killed, or out of memory?)"
    else:
        kind, what = ComputeError, "Ray Train could not run the workers"
    return kind(f"{what}: {reason}; start again, and the run continues from its last checkpoint")


def capacity(compute: ComputeConfig, nodes: Sequence[dict[str, Any]], gpus: bool = False) -> int:
    """Number of workers for which the nodes of the cluster have room."""
    alive = [node["Resources"] for node in nodes if node["Alive"]]
    rooms = [int(node.get("CPU", 0)) // compute.threads for node in alive]
    return sum(min(room, int(node.get("GPU", 0))) if gpus else room for room, node in zip(rooms, alive, strict=True))


def check_capacity(compute: ComputeConfig, nodes: Sequence[dict[str, Any]]) -> int:
    """The number of GPUs of a worker.

    Raises:
        ComputeError: the cluster is too small; Ray would wait for a larger one.
    """
    on_gpu = compute.device != "cpu" and any(n["Alive"] and n["Resources"].get("GPU", 0) >= 1 for n in nodes)
    if compute.device == "cuda" and not on_gpu:
        raise ComputeError(
            "compute.device: expected a cluster with a GPU for cuda, got one without; set it to auto or cpu"
        )
    room = capacity(compute, nodes, on_gpu)
    if room < compute.workers:
        of = f"{compute.threads} CPUs (compute.threads)" + (" and a GPU each" if on_gpu else " each")
        raise ComputeError(
            f"compute.workers: expected at most {room}, as the cluster has room for workers of {of}, "
            f"got {compute.workers}"
        )
    return int(on_gpu)


def check_sharding() -> None:
    """Check that FSDP2 can drop a pass that no backward pass follows, as losses have them.

    Raises:
        ComputeError: this PyTorch's cannot, as that of 2.11.
    """
    import torch
    from torch.distributed.fsdp import FSDPModule

    if not hasattr(FSDPModule, "reset_iter_state"):
        raise ComputeError(
            "compute.shard: expected a PyTorch whose FSDPModule has reset_iter_state, as that of 2.13, got "
            f"{torch.__version__}; install that one, or set it to false"
        )


def _work(
    mailbox: Any, function: Callable[..., Any], args: Sequence[Any], compute: ComputeConfig, folder: Path | None
) -> None:
    """The function on one worker."""
    import ray
    from ray.train import get_context

    from cmcore.train.workers import Worker

    def post(message: Message) -> Any:
        return mailbox.add.remote(message)

    def emit(value: Any) -> None:
        if worker.lead:
            post(Message("event", value))

    context = get_context()
    worker = Worker(context.get_world_rank(), context.get_world_size(), compute.shard)
    if ray.get(mailbox.failed.remote()):
        return
    try:
        require_folder(folder)
        result = limited(compute.threads, function, *args, emit, worker)
    except Exception as error:
        if lost_peer(error):
            raise PeerLostError(f"another worker was lost: {error}") from error
        ray.get(post(Message("error", portable(error))))
        raise
    if worker.lead:
        ray.get(post(Message("result", result)))


def lost_peer(error: BaseException) -> bool:
    """Whether an error says that another worker does not answer: NCCL's have a type, gloo's only a text."""
    from torch.distributed import DistError

    return isinstance(error, DistError) or (isinstance(error, RuntimeError) and "gloo" in str(error))
