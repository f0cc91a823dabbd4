"""A search in MLflow: a parent run, and below it a run per trial with its values, its scores and why it stopped.

What MLflow does not take while the search runs is dropped: its files are the truth.
"""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from cmcore.config import flatten, plain
from cmcore.edge.mlflow_writer import RunState, Store
from cmcore.edge.settings import TrackingConfig
from cmcore.search.search import Job
from cmcore.search.trial import BAD, FINISHED

logger = logging.getLogger(__name__)
METRIC = "tune/fd"


class Tried(Protocol):
    """A trial, of a search that runs or as its report lists it."""

    @property
    def key(self) -> str: ...
    @property
    def values(self) -> Mapping[str, Any]: ...
    @property
    def scores(self) -> Mapping[int, float]: ...  # images seen -> Frechet distance
    @property
    def outcome(self) -> str: ...


class SearchRuns:
    """The runs of a search: `parent`, and one for each trial.

    Args:
        name: of the search.
        fingerprint: finds its runs.
        tags: that all of its runs share.
        params: of the search.
        moment: of its scores: see `RunState`.
    """

    def __init__(
        self, name: str, fingerprint: str, tags: Mapping[str, str], params: Mapping[str, Any], moment: int | None = None
    ) -> None:
        self._tags = {"run": f"tune/{name}", "fingerprint": fingerprint, "kind": "search", "search": name, **tags}
        self.parent = RunState(self._tags, moment=moment)
        self.parent.params(params)

    @classmethod
    def of(cls, job: Job, moment: int | None = None) -> "SearchRuns":
        """Those of a search that the parameter file describes."""
        config, base = job.config, job.base
        model = {"base": base.name, "method": base.method, "ema": base.train.eval_ema, "nfe": str(config.nfe)}
        params = {**flatten(plain(config)), "base": config.base}
        return cls(job.name, job.folder.name, {"workload": job.project.workload, **model}, params, moment)

    def end(self, best: Tried | None, files: Sequence[Path]) -> None:
        """The parent of a search that is over; `best` of its trials counts if it came to its end."""
        if best is not None and best.outcome == FINISHED:
            self.parent.tag({"best_trial": best.key})
            self.parent.metrics({METRIC: best.scores[max(best.scores)]}, max(best.scores))
        for path in files:
            self.parent.artifact(path)

    def trial(self, trial: Tried, *, over: bool, moment: int | None = None) -> RunState:
        """The run of a trial, whose outcome counts where it is over."""
        own = {"run": f"{self._tags['run']}/{trial.key}", "kind": "trial", "trial_key": trial.key}
        ended = {"stopped_by": trial.outcome} if over else {}
        run = RunState({**self._tags, **own, **ended}, status_of(trial.outcome) if over else "", self.parent, moment)
        run.params(trial.values)
        for images, score in trial.scores.items():
            run.metrics({METRIC: score}, images)
        return run


def status_of(outcome: str) -> str:
    """A trial's end in MLflow's words."""
    return "FAILED" if outcome.startswith(BAD) else "FINISHED" if outcome == FINISHED else "KILLED"


class SearchRecorder:
    """Records one search while it runs; after the first failure of MLflow it says so once and stays silent.

    Args:
        config: the `tracking` section.
        job: the search.
        root: the folder that holds `.tracking`.
    """

    def __init__(self, config: TrackingConfig, job: Job, root: Path) -> None:
        self._store = Store.of(config, root, job.project.workload).searches
        self._runs, self._on = SearchRuns.of(job), config.mlflow
        self._runs.parent.status = "RUNNING"
        self._send(self._runs.parent)

    def record(self, trial: Tried, over: bool) -> None:
        """Write what is known of a trial, and at its end why it ended."""
        run = self._runs.trial(trial, over=over)
        if not over:
            run.tag({"stopped_by": "nothing"})
            run.status = "RUNNING"
        self._send(run)

    def close(self, best: Tried | None, artifacts: list[Path]) -> None:
        """End the parent run with the best trial and the search's files; without a best trial it has failed."""
        self._runs.end(best, artifacts)
        self._runs.parent.close(failed=best is None)
        self._send(self._runs.parent)

    def _send(self, run: RunState) -> None:
        if not self._on:
            return
        try:
            run.send(self._store, again=True)
        except Exception as error:  # whatever a service does, the search goes on
            self._on = False
            logger.warning("%s; the files of the search are complete", " ".join(str(error).split())[:300])
