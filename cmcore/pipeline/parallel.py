"""`make repro JOBS=n`: do the work of many stages on one Ray, up to n at a time; `dvc repro` then only seals it.

The work is done by the same functions as in the stages themselves, so files and bits are the same whichever way it
went. Done here, Ray is started once, its workers are used again, and torch, Ray and MLflow are imported once.
"""

import queue
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from cmcore import plugins
from cmcore.assemble.project import Project
from cmcore.edge.ray_session import ComputeError, connection
from cmcore.pipeline.common import Setup, load
from cmcore.pipeline.process import expected, guarded
from cmcore.pipeline.ready import Desk, Find, Results
from cmcore.pipeline.speeds import Speeds

AHEAD = ("reference", "train", "evaluate")  # stages that can be done ahead of DVC


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
        elif isinstance(error, expected()):
            failed.append(job)
            print(f"{job.replace('@', ' ')}: {error}", file=sys.stderr, flush=True)
        else:
            raise error
    if failed:
        rest = f"; not started: {', '.join(waiting)}" if waiting else ""
        raise JobsFailedError(f"failed: {', '.join(failed)}{rest}")


def stage_needs(project: Project) -> dict[str, list[str]]:
    """The stages that can be done ahead of DVC, each with those of them that it reads from."""
    needs: dict[str, list[str]] = {"reference": []}
    for name, run in project.runs.items():
        parents = [f"train@{parent}" for parent in run.parents]
        needs[f"train@{name}"] = parents
        needs[f"evaluate@{name}"] = ["reference", f"train@{name}", *parents]
    return needs


def is_ahead(stage: str) -> bool:
    """Whether a stage can be done ahead of DVC."""
    return stage.partition("@")[0] in AHEAD


def do(setup: Setup, stage: str, find: Find) -> tuple[Results, list[Path]]:
    """Do the work of a stage: what came of it, and the files that it was made from."""
    kind, _, run = stage.partition("@")
    module = plugins.load("stages", kind)
    return module.make(setup, run, find), module.reads(setup, run)


def compute_all(
    setup: Setup, stages: Iterable[str], jobs: int, say: Callable[[str, float], None] = lambda stage, left: None
) -> None:
    """Do the work of some stages, up to `jobs` at a time, each after those that it reads from.

    Args:
        setup: the parameters. The data must be prepared.
        stages: which; what they read must be made by one of them, or lie in the outputs.
        jobs: how many at a time. A cluster takes as many of them as it has room for; a Ray of our own takes them all.
        say: told every stage that is done, and the seconds that the rest may take.

    Raises:
        JobsFailedError: a stage could not be done.
    """
    if setup.compute.backend != "ray":
        raise ComputeError("compute.backend: expected ray for JOBS above 1, got inline")
    needs = {stage: before for stage, before in stage_needs(setup.project).items() if stage in set(stages)}
    desk, speeds = Desk(setup.folders.root), Speeds.read(setup.folders.work / "speeds.json")
    costs = {stage: speeds.work(stage, setup.project) for stage in needs}
    inner = {stage: [other for other in before if other in needs] for stage, before in needs.items()}
    left, lock, folder = list(needs), threading.Lock(), setup.folders.work / setup.folders.workload

    def rest() -> float:
        """Seconds for what is left, by all that is known by now: of a new workload that is nothing at first."""
        each = {stage: speeds.work(stage, setup.project) for stage in left}
        return max(sum(each.values()) / jobs, *chains(each, inner).values(), 0.0)

    def work(stage: str) -> None:
        if desk.waiting(stage) is None:
            begun, start = set(folder.glob("*")), time.monotonic()
            results, inputs = do(setup, stage, desk.find)
            desk.leave(stage, results, inputs)
            if begun.isdisjoint(made.parent for made in results.values()):  # else it went on from a checkpoint
                with lock:
                    speeds.learn(stage, setup.project, time.monotonic() - start)
        with lock:
            left.remove(stage)
            say(stage, rest())

    with connection(setup.compute):
        run_graph(costs, inner, jobs, work)


if __name__ == "__main__":
    guarded("parallel", lambda: compute_all(load(), sys.argv[2:], int(sys.argv[1])))
