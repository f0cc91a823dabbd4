"""One entry of `tune` -> reports/<workload>/tune/<name>: ranked trials, the best values, figures."""

from cmcore.assemble.training import Inputs
from cmcore.atomic import replacing
from cmcore.config import ConfigError, join
from cmcore.edge.mlflow_search import SearchRecorder
from cmcore.edge.ray_tune import search
from cmcore.pipeline.common import Setup, load
from cmcore.pipeline.progress import Done, listener
from cmcore.pipeline.tidy import tidy_search
from cmcore.report.importance import Axis, importances
from cmcore.report.search_files import write_search
from cmcore.report.searches import SearchResult, TrialResult
from cmcore.search.search import Job, overrides, search_fingerprint
from cmcore.search.trial import Trial


def job_of(setup: Setup, name: str) -> Job:
    """The search of that name, in a folder named by its fingerprint."""
    searches, folders = setup.searches, setup.folders
    if name not in searches:
        raise ConfigError(join("tune", name), f"expected one of {', '.join(searches) or 'none, as there is no search'}")
    inputs = Inputs(folders.data, *map(folders.weights, (searches[name].init, searches[name].teacher)))
    folders.require([folders.manifest, inputs.init, inputs.teacher, folders.reference])
    mark = search_fingerprint(setup.project, searches[name], inputs, folders.reference)
    folder = folders.work / folders.workload / "tune" / f"{name}-{mark}"
    return Job(setup.project, name, searches[name], inputs, folders.reference, folder)


def described(job: Job, trials: list[Trial], confirmed: list[dict[str, float]]) -> tuple[SearchResult, list[Axis]]:
    """The search as the report shows it, and its parameters."""
    config = job.config
    axes = [Axis(dimension.path, dimension.low, dimension.high, dimension.position) for dimension in config.dimensions]
    tried = [TrialResult(trial.key, trial.values, trial.scores, trial.outcome) for trial in trials if trial.values]
    result = SearchResult(
        name=job.name,
        base=config.base,
        metric=f"fd of {config.samples} samples at {config.nfe} NFE after {job.budget} images",
        best={"runs": {config.base: overrides(config, trials[0].values)}},
        confirmed=confirmed,
        importance=importances(tried, axes),
        trials=tried,
        fingerprint=job.folder.name,
    )
    return result, axes


def main(name: str) -> None:
    """Search, or continue the search, and write its outputs."""
    setup = load()
    job = job_of(setup, name)
    recorder = SearchRecorder(setup.tracking, job, setup.folders.root)
    best, written = None, []
    try:
        with listener(f"tune {name}", "trial") as listen:
            trials, confirmed = search(
                setup.compute, job, record=recorder.record, on_progress=lambda done, total: listen(Done(done, total))
            )
        with replacing(setup.folders.reports / "tune" / name) as out:
            write_search(*described(job, trials, confirmed), out)
        # The page does not know this search yet. Where it is missing, the next `dvc repro` makes it again.
        (setup.folders.reports / "index.html").unlink(missing_ok=True)
        tidy_search(job.folder)
        best, written = trials[0], sorted((setup.folders.reports / "tune" / name).iterdir())
    finally:
        recorder.close(best, written)
