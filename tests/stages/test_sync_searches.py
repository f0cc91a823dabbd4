"""Searches in a real sqlite store: a parent with its trials, each once, whatever MLflow knew before."""

import json
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from tiny_search import PARAMS, make_job

from cmcore.atomic import replacing
from cmcore.commands.sync import sync
from cmcore.config import load_yaml
from cmcore.edge.mlflow_search import METRIC, SearchRecorder
from cmcore.edge.mlflow_writer import TrackingError
from cmcore.edge.settings import TrackingConfig
from cmcore.pipeline.common import Setup, load
from cmcore.report.search_files import write_search
from cmcore.report.searches import read_searches
from cmcore.search.search import Job
from cmcore.search.trial import Trial, ranked, trial_folder
from cmcore.train.session import CHECKPOINT
from stages import tune
from stages.tune import described, job_of

mlflow = pytest.importorskip("mlflow")
NAN = "diverged: step 3: loss is nan"
ENDS = {"a": "finished", "b": "finished", "c": "stopped by asha", "d": NAN}


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Setup:
    """A project with data, a reference and a teacher; its searches have not run."""
    root, parts = tmp_path_factory.mktemp("project"), tmp_path_factory.mktemp("parts")
    how = {"compute": {"backend": "inline", "threads": 1}, "tracking": {"mlflow": True}}
    (root / "params.yaml").write_text(yaml.safe_dump({**PARAMS, **how}))
    job, setup = make_job(parts, "schedule"), load(root)
    shutil.copytree(job.inputs.data, setup.folders.data)
    shutil.copytree(job.reference, setup.folders.reference)
    setup.folders.weights("edm").parent.mkdir(parents=True)
    shutil.copy(job.inputs.init, setup.folders.weights("edm"))
    setup.folders.weights("none").parent.mkdir()
    shutil.copy(job.inputs.teacher, setup.folders.weights("none"))
    return setup


@pytest.fixture
def setup(made, tmp_path, request) -> Setup:
    """A copy of the project for the test alone, with an experiment of its own in the store that all tests share."""
    root = tmp_path / "project"
    shutil.copytree(made.folders.root, root, ignore=shutil.ignore_patterns(".tracking"))
    store = f"sqlite:///{made.folders.root}/.tracking/mlflow.db"
    return replace(load(root), tracking=TrackingConfig(experiment=request.node.name, uri=store))


def trials() -> list[Trial]:
    """Invented ones, of every end."""
    return ranked(
        [
            Trial(
                key,
                {"options.q": 2.0 + place, "train.lr": 0.001, "train.ema.ema.half_life": 100},
                {256: 2.0 + place} | ({512: 1.0 + place} if outcome == "finished" else {}),
                outcome,
            )
            for place, (key, outcome) in enumerate(ENDS.items())
        ]
    )


def search(setup: Setup) -> Job:
    """The files of the search `schedule`, as if it had run."""
    job = job_of(setup, "schedule")
    for trial in trials():
        kept = trial.outcome == "finished" or trial.outcome == NAN
        place = trial_folder(job, trial.key)
        place.mkdir(parents=True)
        replace(trial, outcome=trial.outcome if kept else "running").save(place)
    with replacing(setup.folders.reports / "tune/schedule") as out:
        write_search(*described(job, trials(), [{"seed": 5, "before": 2.0, "after": 1.0}]), out)
    return job


def runs(setup: Setup):
    """A client, the parent of the search, and its trials by key."""
    client = mlflow.MlflowClient(setup.tracking.uri)
    group = client.get_experiment_by_name(f"{setup.tracking.experiment} searches")
    found = client.search_runs([group.experiment_id])
    parents = [run for run in found if run.data.tags["kind"] == "search"]
    assert len(parents) == 1
    children = {run.data.tags["trial_key"]: run for run in found if run.data.tags["kind"] == "trial"}
    assert len(children) + 1 == len(found), "a trial stands twice"
    assert {run.data.tags["mlflow.parentRunId"] for run in children.values()} <= {parents[0].info.run_id}
    return client, parents[0], children


def check_complete(setup: Setup, job: Job) -> None:
    """MLflow holds all of `search`, once."""
    client, parent, children = runs(setup)
    assert (parent.info.run_name, parent.info.status) == ("tune/schedule", "FINISHED")
    known = {"base": "ect", "method": "ect", "nfe": "1", "ema": "ema", "workload": "tiny", "search": "schedule"}
    for run in (parent, *children.values()):
        assert {key: run.data.tags[key] for key in known} == known
    assert parent.data.tags["best_trial"] == "a"
    assert parent.data.params["space.options.q.uniform"] == "[2.0, 8.0]"
    files = {path.name for path in (setup.folders.reports / "tune/schedule").iterdir()}
    assert {"trials.json", "best.yaml", "parallel.png", "importance.png"} <= files
    assert {file.path for file in client.list_artifacts(parent.info.run_id)} == files
    statuses = {"a": "FINISHED", "b": "FINISHED", "c": "KILLED", "d": "FAILED"}
    for trial in trials():
        child = children[trial.key]
        assert (child.info.run_name, child.info.status) == (f"tune/schedule/{trial.key}", statuses[trial.key])
        assert child.data.tags["stopped_by"] == trial.outcome
        assert child.data.params == {path: str(value) for path, value in trial.values.items()}
        points = client.get_metric_history(child.info.run_id, METRIC)
        assert Counter((point.step, point.value) for point in points) == Counter(trial.scores.items())
    (best,) = client.get_metric_history(parent.info.run_id, METRIC)
    assert (best.step, best.value) == (512, 1.0)
    assert parent.data.tags["fingerprint"] == job.folder.name


def test_the_stage_leaves_a_report_and_scores_and_asks_for_a_new_page(setup, monkeypatch):
    """The whole stage but for Ray: an invented search that MLflow follows."""
    job, reports = job_of(setup, "schedule"), setup.folders.reports

    def invented(compute, job, *, record, on_progress):
        for done, trial in enumerate(trials(), start=1):
            trial.save(trial_folder(job, trial.key))
            (trial_folder(job, trial.key) / CHECKPOINT).write_bytes(b"state")
            record(trial, True)
            on_progress(done, 4)
        return trials(), [{"seed": 5, "before": 2.0, "after": 1.0}]

    monkeypatch.setattr(tune, "search", invented)
    monkeypatch.setattr(tune, "load", lambda: setup)
    reports.mkdir(parents=True)
    (reports / "index.html").write_text("a page that does not know of the search")
    tune.main("schedule")
    (found,) = read_searches(reports / "tune")
    assert (found.fingerprint, [trial.key for trial in found.trials]) == (job.folder.name, ["a", "b", "c", "d"])
    assert load_yaml(found.folder / "best.yaml") == {"runs": {"ect": found.best["runs"]["ect"]}}
    assert not (reports / "index.html").exists()
    assert {path.name for path in job.folder.glob("trials/*/*")} == {"trial.json"}
    check_complete(setup, job)
    assert sync(setup) == [f"tune/{job.folder.name}, 4 trials: nothing was missing"]


def test_a_search_that_mlflow_never_saw_is_told_once_however_often(setup):
    job = search(setup)
    (first,) = sync(setup)
    assert first.startswith(f"tune/{job.folder.name}, 4 trials: sent 7 points, ")
    check_complete(setup, job)
    assert sync(setup) == [f"tune/{job.folder.name}, 4 trials: nothing was missing"]
    check_complete(setup, job)


@pytest.mark.parametrize("seen", [0, 2, 4])
def test_a_search_whose_server_went_away_is_completed(setup, seen):
    """`seen` trials reached the server: the last of them without its end."""
    job = search(setup)
    recorder = SearchRecorder(setup.tracking, job, setup.folders.root)
    for place, trial in enumerate(trials()[:seen], start=1):
        recorder.record(trial, over=place < seen)
    sync(setup)
    check_complete(setup, job)


def test_a_search_that_was_tracked_live_misses_nothing(setup):
    job = search(setup)
    recorder = SearchRecorder(setup.tracking, job, setup.folders.root)
    for trial in trials():
        recorder.record(trial, over=True)
    recorder.close(trials()[0], sorted((setup.folders.reports / "tune/schedule").iterdir()))
    assert sync(setup) == [f"tune/{job.folder.name}, 4 trials: nothing was missing"]
    check_complete(setup, job)


def test_of_an_interrupted_search_nothing_is_invented(setup):
    job = search(setup)
    shutil.rmtree(setup.folders.reports / "tune")
    recorder = SearchRecorder(setup.tracking, job, setup.folders.root)
    recorder.record(trials()[2], over=True)  # stopped by asha, which its file does not know
    sync(setup)
    client, parent, children = runs(setup)
    assert parent.info.status == "RUNNING"
    assert {key: run.info.status for key, run in children.items()} == {
        "a": "FINISHED", "b": "FINISHED", "c": "KILLED", "d": "FAILED",
    }  # fmt: skip
    assert children["c"].data.tags["stopped_by"] == "stopped by asha"
    assert len(client.get_metric_history(children["c"].info.run_id, METRIC)) == 1


def without_fingerprint(setup: Setup) -> None:
    table = setup.folders.reports / "tune/schedule/trials.json"
    data = json.loads(table.read_text())
    del data["fingerprint"]
    table.write_text(json.dumps(data))


def test_a_report_without_its_fingerprint_is_known_by_its_trials(setup):
    job = search(setup)
    without_fingerprint(setup)
    sync(setup)
    check_complete(setup, job)


def test_a_clone_tells_what_its_reports_hold_under_one_name(setup):
    search(setup)
    without_fingerprint(setup)
    shutil.rmtree(setup.folders.work)
    shutil.rmtree(setup.folders.outputs)
    (first,), (second,) = sync(setup), sync(setup)
    assert second == first.partition(":")[0] + ": nothing was missing"
    _, parent, children = runs(setup)
    assert parent.data.params == {"base": "ect"}
    assert sorted(children) == ["a", "b", "c", "d"]


def test_parameters_of_a_search_that_the_file_no_longer_describes_are_not_invented(setup):
    search(setup)
    params = setup.folders.root / "params.yaml"
    params.write_text(params.read_text().replace("trials: 4", "trials: 5"))
    sync(replace(load(setup.folders.root), tracking=setup.tracking))
    _, parent, children = runs(setup)
    assert parent.data.params == {"base": "ect"}
    assert children["a"].data.params["options.q"] == "2.0"


@pytest.mark.parametrize("file", ["reports/tiny/tune/schedule/trials.json", ".work/tiny/tune/*/trials/a/trial.json"])
def test_a_damaged_file_is_one_sentence(setup, file):
    search(setup)
    if file.startswith(".work"):
        shutil.rmtree(setup.folders.reports / "tune")
    (path,) = Path(setup.folders.root).glob(file)
    path.write_text('{"trials": [')
    with pytest.raises(TrackingError, match="the files of a search cannot be read: ") as caught:
        sync(setup)
    assert "\n" not in str(caught.value)
