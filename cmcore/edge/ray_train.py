"""Running a function on several workers at once, with Ray Train: each computes its share, the lead speaks and writes.

Ray Train places the workers, connects them (gloo between CPUs, NCCL between GPUs) and starts all of them again when one
dies. Where a run stands, and what came of it, is read from the run's own files and never from Ray.
"""

import os
import shutil
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from cmcore.edge.ray_run import Emit, limited, portable
from cmcore.edge.ray_session import ROOT, ComputeError, connection
from cmcore.edge.settings import ComputeConfig

if TYPE_CHECKING:
    from torch import Tensor

RESTARTS = 5  # of all workers, after one has died
PATIENCE = 60.0  # seconds that the cluster may be too small for the workers, after a node was lost
POLL = 0.2  # seconds between two looks at what the lead has said
# Ray's own default of two seconds would be the resolution of every start, end and failure.
ENVIRONMENT = {"RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5"}


class PeerLostError(RuntimeError):
    """Another worker is gone. All of them start again from the last checkpoint."""


class Letter(NamedTuple):
    """What a worker has to say: any number of events, then a result or an error."""

    kind: Literal["event", "result", "error"]
    value: Any


class Mailbox:
    """An actor beside the driver that keeps what the workers say until the driver takes it; it outlives them."""

    def __init__(self) -> None:
        self._letters: list[Letter] = []
        self._failed = False

    def put(self, letter: Letter) -> None:
        """Keep a letter."""
        self._failed |= letter.kind == "error"
        self._letters.append(letter)

    def take(self) -> list[Letter]:
        """All letters since the last time."""
        letters, self._letters = self._letters, []
        return letters

    def failed(self) -> bool:
        """Whether the function raised an error, which it would raise again."""
        return self._failed


def execute_together(
    compute: ComputeConfig, folder: Path, function: Callable[..., Any], *args: Any, progress: Emit
) -> Any:
    """Call `function(*args, emit, worker)` on `compute.workers` workers and return what the lead returned.

    Args:
        compute: where, with how many workers, and with how many threads each.
        folder: of the run, on storage that all workers share. Its name holds the fingerprint and is the name that Ray
            knows the run by: under one name Ray resumes silently, so a changed run must have another.
        function: importable by name. Called again after a worker died, it continues from its own checkpoint.
        *args: its arguments; paths are absolute.
        progress: called here with every value that the lead emits.

    Returns:
        The lead's result.

    Raises:
        ComputeError: there is no such cluster, it is too small, or workers died too often.
        Exception: what the function raised, with the traceback from the worker as a note.
    """
    os.environ |= ENVIRONMENT
    with connection(compute) as session:
        import ray
        from ray.exceptions import RayError
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        gpus = check_places(compute, ray.nodes())
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        actor: Any = ray.remote(num_cpus=0)(Mailbox)
        mailbox = actor.options(scheduling_strategy=here).remote()
        needed = None if session.own else ROOT
        try:
            fit = _Fit(compute, gpus, folder, lambda: _share(mailbox, function, args, compute.threads, needed))
            return _listen(compute, mailbox, fit, progress)
        except RayError as error:
            raise _explained(error) from error
        finally:
            ray.kill(mailbox)


class _Fit(threading.Thread):
    """The fit of Ray Train, which blocks, in a thread of its own. `error` is why it ended, if not well."""

    def __init__(self, compute: ComputeConfig, gpus: int, folder: Path, share: Callable[[], None]) -> None:
        from ray.train import FailureConfig, RunConfig, ScalingConfig
        from ray.train.torch import TorchTrainer
        from ray.train.v2.api.config import LoggingConfig

        super().__init__(name="ray-train", daemon=True)
        storage = folder / ".ray"
        # What Ray remembers of an earlier fit is worth less than our own checkpoint.
        shutil.rmtree(storage, ignore_errors=True)
        self.error: BaseException | None = None
        self._storage = storage
        self._trainer = TorchTrainer(
            share,
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
        except BaseException as error:  # the driver raises it, in its own words, unless it has gone away
            self.error = error
        shutil.rmtree(self._storage, ignore_errors=True)


def _listen(compute: ComputeConfig, mailbox: Any, fit: _Fit, progress: Emit) -> Any:
    """Pass on what the lead says until all workers have ended."""
    import ray

    ended, missing_since, result = False, 0.0, None
    while not ended:
        ended = not fit.is_alive()  # asked before the last letters are taken
        for letter in ray.get(mailbox.take.remote()):
            if letter.kind == "event":
                progress(letter.value)
            elif letter.kind == "error":
                raise letter.value
            else:
                result = letter
        enough = places(compute, ray.nodes()) >= compute.workers
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
        what = f"the workers died {RESTARTS + 1} times (killed, or out of memory?)"
    else:
        what = "Ray Train could not run the workers"
    return ComputeError(f"{what}: {reason}; start again, and the run continues from its last checkpoint")


def places(compute: ComputeConfig, nodes: Sequence[dict[str, Any]], gpus: bool = False) -> int:
    """How many workers the nodes of the cluster have room for."""
    alive = [node["Resources"] for node in nodes if node["Alive"]]
    rooms = [int(node.get("CPU", 0)) // compute.threads for node in alive]
    return sum(min(room, int(node.get("GPU", 0))) if gpus else room for room, node in zip(rooms, alive, strict=True))


def check_places(compute: ComputeConfig, nodes: Sequence[dict[str, Any]]) -> int:
    """The number of GPUs a worker asks for. Too small a cluster is a ComputeError: Ray would wait for a larger one."""
    on_gpu = compute.device != "cpu" and any(n["Alive"] and n["Resources"].get("GPU", 0) >= 1 for n in nodes)
    if compute.device == "cuda" and not on_gpu:
        raise ComputeError(
            "compute.device: expected a cluster with a GPU for cuda, got one without; set it to auto or cpu"
        )
    room = places(compute, nodes, on_gpu)
    if room < compute.workers:
        of = f"{compute.threads} CPUs (compute.threads)" + (" and a GPU each" if on_gpu else " each")
        raise ComputeError(
            f"compute.workers: expected at most {room}, as the cluster has room for workers of {of}, "
            f"got {compute.workers}"
        )
    return int(on_gpu)


def _share(mailbox: Any, function: Callable[..., Any], args: Sequence[Any], threads: int, needed: Path | None) -> None:
    """What every worker runs."""
    import ray
    from ray.train import get_context

    from cmcore.train.steps import Worker

    def post(letter: Letter) -> Any:
        return mailbox.put.remote(letter)

    def emit(value: Any) -> None:
        if worker.lead:
            post(Letter("event", value))

    context = get_context()
    worker = Worker(context.get_world_rank(), context.get_world_size(), add_up)
    if ray.get(mailbox.failed.remote()):
        return
    try:
        if needed is not None and not needed.is_dir():
            raise ComputeError(f"a node of the cluster does not see {needed}: the project must lie on shared storage")
        result = limited(threads, function, *args, emit, worker)
    except PeerLostError:
        raise
    except Exception as error:
        ray.get(post(Letter("error", portable(error))))
        raise
    if worker.lead:
        ray.get(post(Letter("result", result)))


def add_up(tensors: "Sequence[Tensor]") -> None:
    """Sum tensors over all workers, in place; every worker gets the same bits.

    One message for each dtype instead of one for each tensor: between machines it is the number of messages that costs.
    """
    import torch
    import torch.distributed as dist

    for dtype in dict.fromkeys(tensor.dtype for tensor in tensors):
        group = [tensor for tensor in tensors if tensor.dtype == dtype]
        flat = torch.cat([tensor.reshape(-1).to(tensors[-1].device) for tensor in group])
        try:
            dist.all_reduce(flat)
        except RuntimeError as error:
            raise PeerLostError(f"another worker is gone: {error}") from error
        for tensor, part in zip(group, flat.split([tensor.numel() for tensor in group]), strict=True):
            tensor.copy_(part.view_as(tensor))
