"""A search in MLflow: a parent run, and below it a run per trial with its values, its scores and why it stopped.

Everything is looked up by tags before it is made, so that a search that goes on after a kill, or is recorded again from
its files, doubles nothing. What MLflow does not take is dropped: the files of the search are the truth.
"""

import logging
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cmcore.config import flatten, plain
from cmcore.edge.mlflow_store import open_run, store_uri
from cmcore.edge.settings import TrackingConfig
from cmcore.search.search import Job
from cmcore.search.trial import BAD, FINISHED, Trial

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

logger = logging.getLogger(__name__)
METRIC = "tune/fd"
PARENT = "mlflow.parentRunId"  # by this tag MLflow shows one run below another
STOPPED_BY, BEST_TRIAL = "stopped_by", "best_trial"


def params_of(job: Job) -> dict[str, Any]:
    """What is logged of a search."""
    return {**flatten(plain(job.config)), "base": job.config.base}


def tags_of(job: Job) -> dict[str, str]:
    """What all runs of a search share."""
    config, base = job.config, job.base
    model = {"base": base.name, "method": base.method, "ema": base.train.eval_ema, "nfe": str(config.nfe)}
    return {"workload": job.project.workload, **model}


def search_tags(name: str, fingerprint: str, more: Mapping[str, str]) -> dict[str, str]:
    """The tags of a search's parent run; `run` and `fingerprint` find it again."""
    return {"run": f"tune/{name}", "fingerprint": fingerprint, "kind": "search", "search": name, **more}


def trial_tags(name: str, fingerprint: str, key: str, more: Mapping[str, str]) -> dict[str, str]:
    """The tags of a trial's run, but for its parent and for why it stopped."""
    own = {"run": f"tune/{name}/{key}", "kind": "trial", "trial_key": key}
    return {**search_tags(name, fingerprint, more), **own}


def status_of(outcome: str) -> str:
    """A trial's end in MLflow's words."""
    return "FAILED" if outcome.startswith(BAD) else "FINISHED" if outcome == FINISHED else "KILLED"


class SearchRecorder:
    """Records trials of one search; after the first failure of MLflow it says so once and stays silent.

    Args:
        config: the `tracking` section.
        job: the search.
        root: the folder that holds `.tracking`.
    """

    def __init__(self, config: TrackingConfig, job: Job, root: Path) -> None:
        self._uri = store_uri(config, root)
        self._experiment = config.experiment or job.project.workload
        self._name, self._fingerprint, self._tags = job.name, job.folder.name, tags_of(job)
        self._parent, self._on = "", config.mlflow
        self._guarded(lambda: self._open_parent(params_of(job)))

    def record(self, trial: Trial, over: bool) -> None:
        """Write what is known of a trial, and at its end why it ended."""
        self._guarded(lambda: self._write(trial, over))

    def close(self, best: Trial | None, artifacts: list[Path]) -> None:
        """End the parent run with the best trial and the search's files; without a best trial it has failed."""
        self._guarded(lambda: self._end(best, artifacts))

    def _guarded(self, action: Any) -> None:
        if not self._on:
            return
        try:
            action()
        except Exception as error:  # whatever a service does, the search goes on
            self._on = False
            said = " ".join(str(error).split())[:200]
            logger.warning("MLflow at %s fails (%s); the files of the search are complete", self._uri, said)

    def _open(self, tags: Mapping[str, str]) -> "tuple[MlflowClient, Run]":
        client, run, _ = open_run(self._uri, self._experiment, tags["run"], tags)
        return client, run

    def _open_search(self) -> "tuple[MlflowClient, Run]":
        return self._open(search_tags(self._name, self._fingerprint, self._tags))

    def _open_parent(self, params: Mapping[str, Any]) -> None:
        client, run = self._open_search()
        self._parent = run.info.run_id
        self._log(client, run, params, {})

    def _write(self, trial: Trial, over: bool) -> None:
        tags = trial_tags(self._name, self._fingerprint, trial.key, self._tags)
        client, run = self._open({**tags, PARENT: self._parent, STOPPED_BY: trial.outcome if over else "nothing"})
        self._log(client, run, trial.values, trial.scores)
        if over:
            client.set_terminated(run.info.run_id, status_of(trial.outcome))

    def _log(self, client: "MlflowClient", run: "Run", params: Mapping[str, Any], scores: Mapping[int, float]) -> None:
        """What the run lacks."""
        from mlflow.entities import Metric, Param

        said = {one.step for one in client.get_metric_history(run.info.run_id, METRIC)} if scores else set()
        now = int(time.time() * 1000)
        points = [Metric(METRIC, score, now, images) for images, score in scores.items() if images not in said]
        # PBT changes a trial's values on the way; MLflow keeps the first, the files of the search the last.
        new = [Param(key, str(value)) for key, value in params.items() if key not in run.data.params]
        if points or new:
            client.log_batch(run.info.run_id, metrics=points, params=new)

    def _end(self, best: Trial | None, artifacts: list[Path]) -> None:
        from mlflow.entities import Metric

        client, run = self._open_search()
        if best is not None and METRIC not in run.data.metrics:
            client.log_batch(run.info.run_id, [Metric(METRIC, best.final, int(time.time() * 1000), best.images)])
            client.set_tag(run.info.run_id, BEST_TRIAL, best.key)
        for path in artifacts:
            client.log_artifact(run.info.run_id, str(path))
        client.set_terminated(run.info.run_id, "FINISHED" if best is not None else "FAILED")
