"""Tune's callback. Tune pickles it with the experiment, so it holds only the name of the listener of its process."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from ray import tune

from cmcore.search.search import Job
from cmcore.search.trial import RUNNING, Trial, trial_folder


@dataclass
class Listener:
    """The receiver of the events of a search."""

    job: Job
    record: Callable[[Trial, bool], None]  # (trial, whether it has ended)
    on_progress: Callable[[int, int], None]  # (trials that have ended, trials in all)
    over: set[str] = field(default_factory=set)

    def update(self, key: str, over: bool, error: str = "") -> None:
        """Forward the state of a trial, read from its folder."""
        trial = Trial.load(trial_folder(self.job, key)) or Trial(key, {}, {})
        if over:
            self.over.add(key)
            trial.outcome = outcome_of(self.job, trial, error)
        self.record(trial, over)
        self.on_progress(len(self.over), self.job.config.trials)


LISTENERS: dict[str, Listener] = {}  # by the search's folder


def outcome_of(job: Job, trial: Trial, error: str) -> str:
    """The outcome of a trial that has ended: its own record, else the error, else the scheduler's decision."""
    if trial.outcome != RUNNING:
        return trial.outcome
    if error:
        return f"error: {' '.join(error.strip().splitlines()[-1:])}"
    return f"stopped by {job.config.scheduler}"


class Watcher(tune.Callback):
    """Forwards Tune's events to the listener of this process."""

    def __init__(self, name: str) -> None:
        self._name = name

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        LISTENERS[self._name].update(trial.trial_id, over=False)

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        LISTENERS[self._name].update(trial.trial_id, over=True)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        LISTENERS[self._name].update(trial.trial_id, over=True, error=str(trial.get_error() or ""))
