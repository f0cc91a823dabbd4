"""What the files of searches have to tell MLflow: a parent run for each, and below it a run per trial."""

import re
from collections.abc import Iterator
from pathlib import Path

from cmcore.config import digest
from cmcore.edge.mlflow_replay import Replay, TrackingError
from cmcore.edge.mlflow_search import (
    BEST_TRIAL,
    METRIC,
    STOPPED_BY,
    params_of,
    search_tags,
    status_of,
    tags_of,
    trial_tags,
)
from cmcore.pipeline.common import Folders, Setup
from cmcore.report.readers import ReportError
from cmcore.report.searches import Found, read_searches
from cmcore.search.search import Job
from cmcore.search.trial import FINISHED, RUNNING, TRIAL, Trial
from stages.tune import job_of

FOLDER = re.compile(r"(.+)-[0-9a-f]{16}")  # <search>-<fingerprint>


def search_replays(setup: Setup) -> Iterator[tuple[str, list[Replay]]]:
    """Every search of the workload that has files, with its runs: the parent first.

    Raises:
        TrackingError: a file cannot be read.
    """
    folders = setup.folders
    places = {path.name: path for path in work_folders(folders)}
    reported: set[str] = set()
    try:
        for found in read_searches(folders.reports / "tune"):
            mark = found.fingerprint or mark_of(found, list(places.values()))
            reported.add(mark)
            yield mark, _finished(setup, found, mark)
        for mark, place in places.items():
            trials = [trial for path in sorted(place.glob(f"trials/*/{TRIAL}")) if (trial := Trial.load(path.parent))]
            if mark not in reported and trials:
                yield mark, _unfinished(setup, mark, place, trials)
    except (OSError, ValueError, KeyError, ReportError) as error:
        raise TrackingError(f"the files of a search cannot be read: {' '.join(str(error).split())}") from error


def work_folders(folders: Folders) -> list[Path]:
    """Where searches keep their trials."""
    place = folders.work / folders.workload / "tune"
    return sorted(path for path in place.glob("*") if path.is_dir() and FOLDER.fullmatch(path.name))


def mark_of(found: Found, places: list[Path]) -> str:
    """The fingerprint of a search whose report does not name it: that of the folder with its trials, else a digest."""
    keys = [trial.key for trial in found.trials]
    mine = (place for place in places if place.name.startswith(f"{found.name}-"))
    known = (place.name for place in mine if keys and all((place / "trials" / key).is_dir() for key in keys))
    trials = [[trial.key, dict(trial.values), trial.outcome] for trial in found.trials]
    return next(known, f"{found.name}-{digest(trials)}")


def _job(setup: Setup, name: str, mark: str) -> Job | None:
    """The search of that fingerprint, if the parameter file still describes it."""
    folders, config = setup.folders, setup.searches.get(name)
    read = [folders.manifest, folders.reference / "reference.json"]
    if config is None or not all(
        path.exists() for path in [*read, folders.weights(config.init), folders.weights(config.teacher)]
    ):
        return None
    job = job_of(setup, name)
    return job if job.folder.name == mark else None


def _parent(setup: Setup, name: str, mark: str, known: dict[str, str], status: str) -> tuple[Replay, dict[str, str]]:
    """The run of a search, and the tags of all its runs."""
    job = _job(setup, name, mark)
    tags = tags_of(job) if job else {"workload": setup.project.workload, **known}
    replay = Replay(search_tags(name, mark, tags), status=status)
    replay.params(params_of(job) if job else known)
    return replay, tags


def _finished(setup: Setup, found: Found, mark: str) -> list[Replay]:
    parent, tags = _parent(setup, found.name, mark, {"base": found.base}, "FINISHED")
    table = found.folder / "trials.json"
    parent.written_with(table)
    best = found.trials[0] if found.trials else None
    if best is not None and best.outcome == FINISHED:
        parent.tags[BEST_TRIAL] = best.key
        parent.metrics({METRIC: best.scores[max(best.scores)]}, max(best.scores))
    for path in sorted(path for path in found.folder.iterdir() if path.is_file()):
        parent.artifact(path)
    runs = [parent]
    for trial in found.trials:
        replay = Replay(trial_tags(found.name, mark, trial.key, tags), parent, status_of(trial.outcome))
        replay.tags[STOPPED_BY] = trial.outcome
        replay.params(trial.values)
        replay.written_with(table)
        for images, score in trial.scores.items():
            replay.metrics({METRIC: score}, images)
        runs.append(replay)
    return runs


def _unfinished(setup: Setup, mark: str, place: Path, trials: list[Trial]) -> list[Replay]:
    """A search without a report was interrupted, or runs: what a trial's file calls running may have been stopped."""
    name = mark.rpartition("-")[0]
    parent, tags = _parent(setup, name, mark, {}, RUNNING.upper())
    runs = [parent]
    for trial in trials:
        over = trial.outcome != RUNNING
        status = status_of(trial.outcome) if over else RUNNING.upper()
        replay = Replay(trial_tags(name, mark, trial.key, tags), parent, status)
        if over:
            replay.tags[STOPPED_BY] = trial.outcome
        replay.params(trial.values)
        replay.written_with(place / "trials" / trial.key / TRIAL)
        for images, score in trial.scores.items():
            replay.metrics({METRIC: score}, images)
        runs.append(replay)
    return runs
