"""A search on Ray Tune: each trial is a function on one worker, and a killed search resumes."""

import contextlib
import json
import os
import random
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from cmcore.edge.ray_run import limited, pick_device
from cmcore.edge.ray_session import ComputeError, connection, require_folder
from cmcore.edge.settings import ComputeConfig
from cmcore.edge.tune_choice import domain, scheduler_of, searcher_of
from cmcore.search.confirm import confirm
from cmcore.search.search import Job, posthoc_run, train_once
from cmcore.search.trial import FINISHED, Trial, ranked, run_trial, trial_folder
from cmcore.train.session import CHECKPOINT

FAILURES = 2  # of a trial's worker, before the trial is given up
POSITION = "position.json"  # in Tune's checkpoint of a trial: images seen at its last report
# Tune's own result files and progress tables are off, as trials keep their scores themselves. Its state, from which a
# killed search resumes, is written every second.
QUIET = {"TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1", "RAY_AIR_NEW_OUTPUT": "0", "TUNE_GLOBAL_CHECKPOINT_S": "1"}


def search(
    compute: ComputeConfig, job: Job, *, record: Callable[[Trial, bool], None], on_progress: Callable[[int, int], None]
) -> tuple[list[Trial], list[dict[str, float]]]:
    """Run a search, or the rest of it, and train its best trial on the seeds of `confirm`.

    Args:
        compute: where. A search always runs on Ray; `backend: inline` is for single runs.
        job: the search. Its folder is on storage that all workers share.
        record: called with (trial, whether it has ended) after every new score and at the end.
        on_progress: called with (trials that have ended, trials in all).

    Returns:
        The trials, best first, and for every seed of `confirm` the scores before and after.

    Raises:
        ComputeError: the cluster is too small, or no trial finished.
    """
    os.environ |= QUIET
    with connection(compute) as session:
        import ray

        config, needed = job.config, session.shared_folder
        resources = _resources(compute, config.threads)
        cpus, gpus = resources["CPU"], resources.get("GPU", 0)
        start: Any = ray.remote(num_cpus=cpus, num_gpus=gpus, max_retries=FAILURES)(_call).remote
        if config.kind == "posthoc":
            # All trials share one training, which must not be started by each of them.
            run = posthoc_run(job, config.seed)
            _get(start(config.threads, compute, needed, train_once, job, run, "posthoc"))
        trials = _tune(compute, job, resources, needed, record, on_progress)
        best = trials[0] if trials else None
        if best is None or best.outcome != FINISHED:
            reasons = "; ".join(sorted({trial.outcome for trial in trials})) or "there is none"
            raise ComputeError(f"tune.{job.name}: no trial finished: {reasons}")
        waiting = [start(config.threads, compute, needed, confirm, job, best.values, s) for s in config.confirm]
        return trials, [{"seed": seed, **_get(task)} for seed, task in zip(config.confirm, waiting, strict=True)]


def _call(threads: int, compute: ComputeConfig, needed: Path | None, function: Callable[..., Any], *args: Any) -> Any:
    """A task on a worker, with the device of its machine."""
    require_folder(needed)
    return limited(threads, partial(function, device=pick_device(compute)), *args)


def _get(task: Any) -> Any:
    """The result of a task, in waits short enough for Ctrl-C."""
    import ray

    while not ray.wait([task], timeout=1.0)[0]:
        pass
    return ray.get(task)


def _resources(compute: ComputeConfig, threads: int) -> dict[str, float]:
    import ray

    alive = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    largest = max((node.get("CPU", 0) for node in alive), default=0)
    if threads > largest:
        raise ComputeError(f"threads of a trial: expected at most the {largest:g} CPUs of a node, got {threads}")
    gpus = any(node.get("GPU", 0) >= 1 for node in alive) and compute.device != "cpu"
    return {"CPU": float(threads), **({"GPU": 1.0} if gpus else {})}


def _tune(
    compute: ComputeConfig,
    job: Job,
    resources: dict[str, float],
    needed: Path | None,
    record: Callable[[Trial, bool], None],
    on_progress: Callable[[int, int], None],
) -> list[Trial]:
    import ray
    from ray import tune

    from cmcore.edge.tune_watch import LISTENERS, Listener, Watcher, outcome_of

    config, storage = job.config, job.folder / "ray"
    scheduler, paused = scheduler_of(config), config.scheduler in ("hyperband", "pbt")
    if paused:
        # Paused trials count towards `max_concurrent_trials` without end, so CPUs limit the running ones instead.
        share = ray.cluster_resources().get("CPU", 1) / config.concurrency
        resources = {**resources, "CPU": max(resources["CPU"], float(int(share)))}
    trainable: Any = tune.with_resources(
        tune.with_parameters(_trial, job=job, compute=compute, needed=needed), resources
    )
    random.seed(config.seed)  # PBT draws from the global generators
    np.random.seed(config.seed)
    LISTENERS[str(job.folder)] = Listener(job, record, on_progress)
    path = str(storage / "search")
    if tune.Tuner.can_restore(path):
        tuner = tune.Tuner.restore(path, trainable=trainable, resume_unfinished=True, restart_errored=True)
    else:
        space = {dimension.path: domain(dimension) for dimension in config.dimensions}
        chosen = tune.TuneConfig(
            metric="score",
            mode="min",
            num_samples=config.trials,
            scheduler=scheduler,
            search_alg=searcher_of(config),
            max_concurrent_trials=None if paused else config.concurrency,
            reuse_actors=True,  # a new process imports torch first, which takes longer than a small trial
        )
        placed = tune.RunConfig(
            name="search",
            storage_path=str(storage),
            verbose=0,
            callbacks=[Watcher(str(job.folder))],
            failure_config=tune.FailureConfig(max_failures=FAILURES),
        )
        tuner = tune.Tuner(trainable, param_space=space, tune_config=chosen, run_config=placed)
    results = tuner.fit()
    trials = []
    for result in results:
        key = (result.metrics or {}).get("trial_id") or Path(result.path).name
        trial = Trial.load(trial_folder(job, key)) or Trial(key, {}, {})
        trial.outcome = outcome_of(job, trial, str(result.error or ""))
        trials.append(trial)
    return ranked(trials)


def _trial(tried: dict[str, Any], *, job: Job, compute: ComputeConfig, needed: Path | None) -> None:
    """A trial on its worker, as Tune calls it."""
    from ray import tune

    require_folder(needed)
    key = tune.get_context().get_trial_id()
    given = tune.get_checkpoint()
    with contextlib.ExitStack() as stack:
        reported, start = 0, None
        if given is not None:
            folder = Path(stack.enter_context(given.as_directory()))
            reported = json.loads((folder / POSITION).read_text(encoding="utf-8"))["images"]
            start = folder / CHECKPOINT if (folder / CHECKPOINT).exists() else None
        report = partial(_report, job, trial_folder(job, key))
        limited(
            job.config.threads,
            partial(run_trial, job, key, tried, report, reported=reported, start=start, device=pick_device(compute)),
        )


def _report(job: Job, folder: Path, part: int, images: int, score: float) -> None:
    """Report a score to Tune, with a checkpoint of the trial's position; PBT's also holds the training state."""
    from ray import tune

    with tempfile.TemporaryDirectory() as place:
        Path(place, POSITION).write_text(json.dumps({"images": images}), encoding="utf-8")
        if job.config.scheduler == "pbt" and (folder / CHECKPOINT).exists():
            Path(place, CHECKPOINT).write_bytes((folder / CHECKPOINT).read_bytes())
        values = {"part": part, "images": images, "score": score}
        tune.report(values, checkpoint=tune.Checkpoint.from_directory(place))
