"""A search in MLflow: a parent run, and below it a run per trial with its values, its scores and why it stopped.

Everything is looked up by tags before it is made, so that a search that goes on after a kill, or is recorded again from
its files, doubles nothing. What MLflow does not take is dropped: the files of the search are the truth.
"""

import logging
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cmcore.assemble.trial import BAD, FINISHED, Trial
from cmcore.edge.mlflow_store import open_run, store_uri
from cmcore.edge.settings import TrackingConfig

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

logger = logging.getLogger(__name__)
METRIC = "tune/fd"


class SearchRecorder:
    """Records trials of one search; after the first failure of MLflow it says so once and stays silent.

    Args:
        config: the `tracking` section.
        workload: names the experiment where the section does not.
        name: of the search.
        fingerprint: of the search.
        params: of the search, for the parent run.
        root: the folder that holds `.tracking`.
    """

    def __init__(
        self,
        config: TrackingConfig,
        *,
        workload: str,
        name: str,
        fingerprint: str,
        params: Mapping[str, Any],
        root: Path,
    ) -> None:
        self._uri = store_uri(config, root)
        self._experiment = config.experiment or workload
        self._name, self._fingerprint = f"tune/{name}", fingerprint
        self._parent, self._on = "", config.mlflow
        self._guarded(lambda: self._open_parent(params))

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

    def _open(self, name: str, tags: Mapping[str, str]) -> "tuple[MlflowClient, Run]":
        client, run, _ = open_run(
            self._uri, self._experiment, name, {"run": name, "fingerprint": self._fingerprint, **tags}
        )
        return client, run

    def _open_parent(self, params: Mapping[str, Any]) -> None:
        client, run = self._open(self._name, {"kind": "search"})
        self._parent = run.info.run_id
        self._log(client, run, params, {})

    def _write(self, trial: Trial, over: bool) -> None:
        tags = {"kind": "trial", "trial_key": trial.key, "mlflow.parentRunId": self._parent}
        tags["stopped_by"] = trial.outcome if over else "nothing"
        client, run = self._open(f"{self._name}/{trial.key}", tags)
        self._log(client, run, trial.values, trial.scores)
        if over:
            bad = trial.outcome.startswith(BAD)
            status = "FAILED" if bad else "FINISHED" if trial.outcome == FINISHED else "KILLED"
            client.set_terminated(run.info.run_id, status)

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

        client, run = self._open(self._name, {"kind": "search"})
        if best is not None and METRIC not in run.data.metrics:
            client.log_batch(run.info.run_id, [Metric(METRIC, best.final, int(time.time() * 1000), best.images)])
            client.set_tag(run.info.run_id, "best_trial", best.key)
        for path in artifacts:
            client.log_artifact(run.info.run_id, str(path))
        client.set_terminated(run.info.run_id, "FINISHED" if best is not None else "FAILED")
