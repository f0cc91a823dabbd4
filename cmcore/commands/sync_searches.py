"""The MLflow runs of searches, from their files: a parent for each search, and below it a run per trial."""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from cmcore.config import digest
from cmcore.edge.mlflow_search import SearchRuns
from cmcore.edge.mlflow_writer import RunState, TrackingError
from cmcore.pipeline.common import Folders, Setup
from cmcore.report.readers import ReportError
from cmcore.report.searches import FILE, SearchResult, read_searches
from cmcore.search.search import Job
from cmcore.search.trial import RUNNING, TRIAL, Trial
from stages.tune import job_of

FOLDER = re.compile(r"(.+)-[0-9a-f]{16}")  # <search>-<fingerprint>


def search_runs(setup: Setup) -> Iterator[tuple[str, list[RunState]]]:
    """Every search of the workload that has files, with its runs: the parent first.

    Raises:
        TrackingError: a file cannot be read.
    """
    folders = setup.folders
    places = {path.name: path for path in work_folders(folders)}
    reported: set[str] = set()
    try:
        for found in read_searches(folders.reports / "tune"):
            fingerprint = found.fingerprint or fingerprint_of(found, list(places.values()))
            reported.add(fingerprint)
            yield fingerprint, _finished(setup, found, fingerprint)
        for fingerprint, place in places.items():
            trials = [trial for path in sorted(place.glob(f"trials/*/{TRIAL}")) if (trial := Trial.load(path.parent))]
            if fingerprint not in reported and trials:
                yield fingerprint, _unfinished(setup, fingerprint, place, trials)
    except (OSError, ValueError, KeyError, ReportError) as error:
        raise TrackingError(f"the files of a search cannot be read: {' '.join(str(error).split())}") from error


def work_folders(folders: Folders) -> list[Path]:
    """Folders with the trials of searches."""
    place = folders.work / folders.workload / "tune"
    return sorted(path for path in place.glob("*") if path.is_dir() and FOLDER.fullmatch(path.name))


def fingerprint_of(found: SearchResult, places: list[Path]) -> str:
    """The fingerprint of a search whose report does not name it: that of the folder with its trials, else a digest."""
    keys = [trial.key for trial in found.trials]
    mine = (place for place in places if place.name.startswith(f"{found.name}-"))
    known = (place.name for place in mine if keys and all((place / "trials" / key).is_dir() for key in keys))
    trials = [[trial.key, dict(trial.values), trial.outcome] for trial in found.trials]
    return next(known, f"{found.name}-{digest(trials)}")


def _job(setup: Setup, name: str, fingerprint: str) -> Job | None:
    """The search of that fingerprint, if the parameter file still describes it."""
    folders, config = setup.folders, setup.searches.get(name)
    read = [folders.manifest, folders.reference / "reference.json"]
    if config is None or not all(
        path.exists() for path in [*read, folders.weights(config.init), folders.weights(config.teacher)]
    ):
        return None
    job = job_of(setup, name)
    return job if job.folder.name == fingerprint else None


def _runs(setup: Setup, name: str, fingerprint: str, known: dict[str, str], moment: int | None = None) -> SearchRuns:
    """The runs of a search; `known` is all that is said of one that the parameter file no longer describes."""
    job = _job(setup, name, fingerprint)
    tags = {"workload": setup.project.workload, **known}
    return SearchRuns.of(job, moment) if job else SearchRuns(name, fingerprint, tags, known, moment)


def _finished(setup: Setup, found: SearchResult, fingerprint: str) -> list[RunState]:
    moment = written(found.folder / FILE)
    runs = _runs(setup, found.name, fingerprint, {"base": found.base}, moment)
    runs.end(next(iter(found.trials), None), sorted(path for path in found.folder.iterdir() if path.is_file()))
    runs.parent.close()
    return [runs.parent, *(runs.trial(trial, over=True, moment=moment) for trial in found.trials)]


def _unfinished(setup: Setup, fingerprint: str, place: Path, trials: Sequence[Trial]) -> list[RunState]:
    """A search without a report was interrupted, or runs: what a trial's file calls running may have been stopped."""
    runs = _runs(setup, fingerprint.rpartition("-")[0], fingerprint, {})

    def state(trial: Trial) -> RunState:
        file = place / "trials" / trial.key / TRIAL
        return runs.trial(trial, over=trial.outcome != RUNNING, moment=written(file))

    return [runs.parent, *map(state, trials)]


def written(file: Path) -> int:
    """The time of writing of a file, in milliseconds since 1970: that of its metrics, so that it is always the same."""
    return int(file.stat().st_mtime * 1000)
