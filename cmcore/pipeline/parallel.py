"""Stages that are computed in the driver's process on one Ray, up to n at a time, instead of one by one by DVC.

Each stage module has a function that DVC's own process for the stage calls too, so files and bits are the same either
way. In one process, Ray is started once, its workers are used again, and torch, Ray and MLflow are imported once.
"""

import contextlib
import queue
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any

from cmcore import plugins
from cmcore.assemble.project import Project
from cmcore.budget.need import fewer_rows, rows_matter
from cmcore.budget.room import oom_kills
from cmcore.budget.schedule import chains, least_time
from cmcore.config import ConfigError
from cmcore.edge.ray_session import ComputeError, WorkerDiedError, connection
from cmcore.pipeline.common import Setup
from cmcore.pipeline.fit import Fit, fits_beside, is_remote
from cmcore.pipeline.process import causes, tell, told
from cmcore.pipeline.replicates import jobs_of, split
from cmcore.pipeline.speeds import Speeds
from cmcore.pipeline.tidy import remove
from cmcore.pipeline.work import mend_run, mend_shards, seal

COMPUTED = ("reference", "train", "evaluate", "edit")  # kinds of stages that are computed here


class JobsFailedError(ComputeError):
    """Some of the jobs failed; the others are done, except those that needed them."""


def run_graph(
    costs: Mapping[str, float],
    needs: Mapping[str, Iterable[str]],
    jobs: int,
    work: Callable[[str], None],
    say: Callable[[str, Exception], None] = lambda job, error: tell(f"{job}: {error}"),
    memory: Mapping[str, float] | None = None,
    room: float = float("inf"),
) -> None:
    """Call `work` for every job, up to `jobs` at a time, each after those that it needs.

    Args:
        costs: how long each job may take; decides which goes first, nothing else.
        needs: the jobs that must be done before a job.
        jobs: how many may run at once.
        work: called in threads of its own, or for one job at a time in the calling thread, where signals arrive.
        say: called for every job that failed, with its error.
        memory: of each job, 0 where it is not named. A job begins beside others only where the room suffices for all.
        room: for the memory of all jobs at work.

    Raises:
        JobsFailedError: naming the jobs that failed, after all others that can run have run.
    """
    waiting = sorted(costs, key=chains(costs, needs).__getitem__, reverse=True)
    ended: queue.SimpleQueue[tuple[str, BaseException | None]] = queue.SimpleQueue()
    done, failed, running, sizes = set[str](), list[str](), list[str](), memory or {}

    def may_begin(job: str) -> bool:
        others = [sizes.get(other, 0.0) for other in running]
        return len(running) < jobs and fits_beside(sizes.get(job, 0.0), others, room)

    def call(job: str) -> None:
        try:
            work(job)
        except BaseException as error:  # the main thread handles it
            ended.put((job, error))
        else:
            ended.put((job, None))

    while waiting or running:
        for job in [job for job in waiting if done.issuperset(needs.get(job, ()))]:
            if not may_begin(job):
                continue
            waiting.remove(job)
            running.append(job)
            if jobs == 1:
                call(job)
            else:  # daemons end with the main thread
                threading.Thread(target=call, args=(job,), name=job, daemon=True).start()
        if not running:
            break  # all others need a job that failed
        job, error = ended.get()
        running.remove(job)
        if error is None:
            done.add(job)
        elif isinstance(error, Exception):
            failed.append(job)
            say(job, error)
        else:  # a signal
            raise error
    if failed:
        rest = f"; not started: {', '.join(waiting)}" if waiting else ""
        raise JobsFailedError(f"failed: {', '.join(failed)}{rest}")


def stage_needs(project: Project) -> dict[str, list[str]]:
    """The stages that are computed here, each with those of them that it reads from."""
    needs: dict[str, list[str]] = {"reference": []}
    for name, run in project.runs.items():
        parents = [f"train@{parent}" for parent in run.parents]
        needs[f"train@{name}"] = parents
        needs[f"evaluate@{name}"] = ["reference", f"train@{name}", *parents]
    return needs | {"edit": [f"train@{name}" for name in project.runs]}


def is_computed(stage: str) -> bool:
    """Whether a stage is computed here."""
    return stage.partition("@")[0] in COMPUTED


def attempt(setup: Setup, job: str, rows: int) -> Any:
    """What a job computes; training that was killed for want of memory is tried once more, with half of the rows.

    Args:
        setup: the parameters.
        job: of a stage.
        rows: limit of the rows at once, 0 for none.

    Raises:
        ComputeError: it was killed again, or fewer rows would be another result or none.
    """
    stage, replicate = split(job)
    kind, *names = stage.split("@")
    module = plugins.load("stages", kind)

    def compute(rows: int) -> Any:
        return module.compute(replace(setup, compute=setup.compute.with_rows(rows)), *names, replicate)

    before = oom_kills()
    try:
        return compute(rows)
    except Exception as error:
        if kind != "train" or setup.compute.micro_batch != "auto" or not _out_of_memory(error, setup, before):
            raise
        run = setup.project.run(names[0])
        fewer = 0 if rows_matter(run) else fewer_rows(run, rows, setup.compute.workers)
        if not fewer:
            raise
        why = " ".join(str(error).split()).partition("; start again")[0]
        tell(f"{job.replace('@', ' ')}: {why}; once more from its last checkpoint, {fewer} rows at once")
        try:
            return compute(fewer)
        except WorkerDiedError as again:
            raise ComputeError(
                f"it was killed twice, also with {fewer} rows at once; expected more free memory, a smaller "
                "compute.micro_batch, or JOBS=1; start again, and it continues from its last checkpoint"
            ) from again


def _out_of_memory(error: Exception, setup: Setup, before: int | None) -> bool:
    """Whether a job ended because memory did: the kernel or Ray killed its process for it, or PyTorch said so.

    Where the kernel does not say, as that of a cluster's machine, a process that was killed counts as such. One that
    somebody has killed does not: with fewer rows its result would have other bits.

    Args:
        error: of the job.
        setup: the parameters.
        before: of `oom_kills`, before the job.
    """
    if isinstance(error, WorkerDiedError):
        by_ray = any(type(one).__name__ == "OutOfMemoryError" for one in causes(error))
        return by_ray or before is None or is_remote(setup) or oom_kills() != before
    import torch

    return isinstance(error, torch.OutOfMemoryError)


def compute_stages(
    setup: Setup,
    stages: Iterable[str],
    jobs: int,
    record: Callable[[str], None],
    say: Callable[[str, float], None] = lambda stage, left: None,
    expect: Callable[[float], None] = lambda left: None,
    fit: Fit | None = None,
    speeds: Speeds | None = None,
) -> None:
    """Compute some stages, up to `jobs` replicates at a time, each after the stages that it reads from.

    Args:
        setup: the parameters. The data must be prepared.
        stages: which; their inputs must be made by one of them, or lie in the outputs.
        jobs: how many at a time. A cluster takes as many of them as it has room for; a Ray of our own takes them all.
        record: called for a stage whose results are in their places, before another stage reads them.
        say: called for every stage that is recorded, with the seconds that the rest may take.
        expect: called at the start and after every job with these seconds.
        fit: memory and time that the stages were planned with.
        speeds: what is known of this machine, and learns more; by default, what is remembered.

    Raises:
        JobsFailedError: a stage could not be computed or recorded.
    """
    ray, fit = setup.compute.backend == "ray", fit or Fit()
    if jobs > 1 and not ray:
        raise ComputeError("compute.backend: expected ray for JOBS above 1, got inline")
    parts = {stage: jobs_of(setup, stage) for stage in stage_needs(setup.project) if stage in set(stages)}
    needs = stage_needs(setup.project)
    inner = {
        job: [other for before in needs[stage] for other in parts.get(before, ())]
        for stage, own in parts.items()
        for job in own
    }
    speeds = speeds or Speeds.read(setup.folders.work / "speeds.json", fit.seconds)
    costs = {job: speeds.work(split(job)[0], setup.project) for job in inner}
    made: dict[str, Any] = {}
    left, lock, folder = list(inner), threading.Lock(), setup.folders.work / setup.folders.workload

    def rest() -> float:
        """Seconds for the jobs that are left; more speeds are known with every job that is done."""
        each = {job: speeds.work(split(job)[0], setup.project) for job in left}
        return least_time(each, inner, jobs)

    def work(job: str) -> None:
        stage, replicate = split(job)
        kind, *names = stage.split("@")
        module, folders = plugins.load("stages", kind), f"{'-'.join([*names, '*'])}"
        begun, start = set(folder.glob(folders)), time.monotonic()
        if kind == "train":
            mend_run(setup, names[0], replicate, tell)
        result = attempt(setup, job, fit.rows.get(stage, 0))
        if kind == "evaluate":
            seal(setup, names[0])
        seconds = time.monotonic() - start
        with lock:
            if kind != "train" or set(folder.glob(folders)) > begun:  # else it went on from a checkpoint
                speeds.learn(stage, setup.project, seconds)
            left.remove(job)
            made[job] = result
            expect(rest())
            if not made.keys() >= set(parts[stage]):
                return  # whichever of its jobs ends last writes and records the stage
        superfluous = module.write(setup, *names, [made[one] for one in parts[stage]])
        record(stage)
        remove(superfluous)
        with lock:
            say(stage, rest())

    def failed(job: str, error: Exception) -> None:
        line = str(error) if isinstance(error, ConfigError) else told(error, setup.folders.root)
        print(f"{job.replace('@', ' ')}: {line}", file=sys.stderr, flush=True)

    expect(rest())
    for kind, _, name in (stage.partition("@") for stage in parts):
        if kind == "evaluate":
            mend_shards(setup, name, tell)
    with connection(setup.compute) if ray else contextlib.nullcontext():
        memory = {job: fit.memory.get(split(job)[0], 0.0) for job in inner}
        run_graph(costs, inner, jobs, work, failed, memory, fit.room)
