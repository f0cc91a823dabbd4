"""`make repro JOBS=n`: train independent runs at the same time; the `dvc repro` that follows only seals them.

A run is trained by the same function as in its own stage, so files and bits are the same whichever way it went.
"""

import queue
import sys
import threading
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from cmcore.assemble.training import WEIGHTS, Inputs
from cmcore.edge.ray_session import ComputeError, connection
from stages.common import Setup, load
from stages.plan import Speeds
from stages.process import EXPECTED, guarded
from stages.train import train


class JobsFailedError(ComputeError):
    """Some of the jobs failed; the others are done, but for those that needed them."""


def chains(costs: Mapping[str, float], needs: Mapping[str, Iterable[str]]) -> dict[str, float]:
    """For every job the cost of the longest chain that starts with it: whoever has the longest one goes first."""
    lengths: dict[str, float] = {}

    def length(job: str) -> float:
        if job not in lengths:
            after = [other for other in costs if job in needs.get(other, ())]
            lengths[job] = costs[job] + max(map(length, after), default=0.0)
        return lengths[job]

    return {job: length(job) for job in costs}


def run_graph(
    costs: Mapping[str, float], needs: Mapping[str, Iterable[str]], jobs: int, work: Callable[[str], None]
) -> None:
    """Call `work` for every job, up to `jobs` at a time, each after those that it needs.

    Args:
        costs: how long each job may take; decides who goes first, nothing else.
        needs: the jobs that must be done before a job.
        jobs: how many may run at once.
        work: called in a thread of its own.

    Raises:
        JobsFailedError: naming the jobs that failed, after all others that can run have run.
    """
    waiting = sorted(costs, key=chains(costs, needs).__getitem__, reverse=True)
    ended: queue.SimpleQueue[tuple[str, BaseException | None]] = queue.SimpleQueue()
    done, failed, running = set[str](), list[str](), 0

    def call(job: str) -> None:
        try:
            work(job)
        except BaseException as error:  # the main thread decides what becomes of it
            ended.put((job, error))
        else:
            ended.put((job, None))

    while waiting or running:
        ready = [job for job in waiting if done.issuperset(needs.get(job, ()))][: jobs - running]
        for job in ready:
            waiting.remove(job)
            # A daemon: whoever interrupts the main thread ends the others as well.
            threading.Thread(target=call, args=(job,), name=job, daemon=True).start()
        running += len(ready)
        if not running:
            break  # what is left needs a job that failed
        job, error = ended.get()
        running -= 1
        if error is None:
            done.add(job)
        elif isinstance(error, EXPECTED):
            failed.append(job)
            print(f"train {job}: {error}", file=sys.stderr, flush=True)
        else:
            raise error
    if failed:
        rest = f"; not started: {', '.join(waiting)}" if waiting else ""
        raise JobsFailedError(f"failed: {', '.join(failed)}{rest}")


def train_all(setup: Setup, names: Iterable[str], jobs: int) -> None:
    """Train some runs of the project, up to `jobs` at a time, students after their teachers.

    Args:
        setup: the parameters. The data must be prepared.
        names: the runs; a run that one of them starts from must be among them or have its weights in the outputs.
        jobs: how many at a time. A cluster takes as many of them as it has room for; a Ray of our own takes them all.

    Raises:
        JobsFailedError: a run could not be trained.
    """
    if setup.compute.backend != "ray":
        raise ComputeError("compute.backend: expected ray for JOBS above 1, got inline")
    runs = {name: setup.project.run(name) for name in names}
    needs = {name: [run.init] if run.init in runs else [] for name, run in runs.items()}
    speeds = Speeds.read(setup.folders.work / "speeds.json")
    costs = {name: speeds.expected(f"train@{name}", setup.project) for name in runs}
    finals: dict[str, Path] = {}

    def work(name: str) -> None:
        init = runs[name].init
        # The weights that DVC will copy to the outputs: the same bytes, so the student gets the same fingerprint.
        weights = finals[init] / WEIGHTS if init in finals else setup.folders.weights(init)
        finals[name] = train(setup, runs[name], Inputs(setup.folders.data, weights))

    with connection(setup.compute):
        run_graph(costs, needs, jobs, work)


if __name__ == "__main__":
    guarded("parallel", lambda: train_all(load(), sys.argv[2:], int(sys.argv[1])))
