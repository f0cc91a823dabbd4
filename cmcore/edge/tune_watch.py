"""The callback of Tune, which pickles it with an experiment: it holds a name, by which a process finds its listener."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from ray import tune

from cmcore.search.search import Job
from cmcore.search.trial import RUNNING, Trial, trial_folder


@dataclass
class Listener:
    """Who is told about the trials of a search."""

    job: Job
    record: Callable[[Trial, bool], None]  # a trial, and whether it is over
    on_progress: Callable[[int, int], None]  # trials that are over, and all
    over: set[str] = field(default_factory=set)

    def tell(self, key: str, over: bool, error: str = "") -> None:
        """Hand on what the trial's folder says of it."""
        trial = Trial.load(trial_folder(self.job, key)) or Trial(key, {}, {})
        if over:
            self.over.add(key)
            trial.outcome = ending(self.job, trial, error)
        self.record(trial, over)
        self.on_progress(len(self.over), self.job.config.trials)


LISTENERS: dict[str, Listener] = {}  # by the search's folder


def ending(job: Job, trial: Trial, error: str) -> str:
    """Why a trial is over: what it says itself, else the error, else the scheduler."""
    if trial.outcome != RUNNING:
        return trial.outcome
    if error:
        return f"error: {' '.join(error.strip().splitlines()[-1:])}"
    return f"stopped by {job.config.scheduler}"


class Watcher(tune.Callback):
    """Passes what happens to trials on to the listener of this process."""

    def __init__(self, name: str) -> None:
        self._name = name

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        LISTENERS[self._name].tell(trial.trial_id, over=False)

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        LISTENERS[self._name].tell(trial.trial_id, over=True)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        LISTENERS[self._name].tell(trial.trial_id, over=True, error=str(trial.get_error() or ""))
