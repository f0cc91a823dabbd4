"""Searches on a real Ray: killed and continued, tracked without doubles, and with changing values under PBT."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from search_driver import run_search
from tiny_search import make_job

from cmcore.edge.mlflow_search import SearchRecorder
from cmcore.edge.settings import TrackingConfig
from cmcore.search.trial import Trial, trial_folder

pytest.importorskip("ray.tune")
mlflow = pytest.importorskip("mlflow")
pytestmark = [pytest.mark.slow, pytest.mark.timeout(300), pytest.mark.xdist_group("ray")]
SUPPORT = Path(__file__).resolve().parents[1] / "support"


@pytest.fixture
def root(short_tmp, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return short_tmp


def kill_after(root: Path, name: str, trials: int, said: str) -> None:
    """Start the search in a process of its own and kill that once it has said something."""
    command = [sys.executable, str(SUPPORT / "search_driver.py"), str(root), name, str(trials)]
    environment = {**os.environ, "PYTHONPATH": f"{SUPPORT.parents[1]}:{SUPPORT}"}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert process.stdout is not None
    for line in process.stdout:
        if line.strip() == said:
            break
    # Tune keeps the state of the experiment with a delay; what it does not know of is searched again.
    heard, deadline = time.time(), time.monotonic() + 30
    while time.monotonic() < deadline and not any(
        state.stat().st_mtime > heard for state in root.glob(f"{name}-*/ray/search/experiment_state-*.json")
    ):
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()


def test_a_killed_search_goes_on_and_is_tracked_once(root):
    kill_after(root, "schedule", trials=6, said="1 of 6")
    folder = make_job(root, "schedule", trials=6).folder
    before = {path.parent.name: path.read_bytes() for path in folder.glob("trials/*/trial.json")}
    over = {key for key in before if '"finished"' in before[key].decode()}

    job, trials, _ = run_search(root, "schedule", trials=6)
    assert len(trials) == 6
    kept = over & {trial.key for trial in trials}
    assert kept, "at least one trial that was over is kept"
    assert all((folder / "trials" / key / "trial.json").read_bytes() == before[key] for key in kept)
    assert {trial.outcome for trial in trials} <= {"finished", "stopped by asha"}
    for trial in trials:
        assert trial.images == (512 if trial.outcome == "finished" else 256)
    best = min(trial.scores[256] for trial in trials)
    assert all(trial.scores[256] > best for trial in trials if trial.outcome == "stopped by asha")
    finished = [trial.final for trial in trials if trial.outcome == "finished"]
    assert finished == sorted(finished)

    client = mlflow.MlflowClient(f"sqlite:///{root / '.tracking' / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("tiny searches")
    runs = client.search_runs([experiment.experiment_id], max_results=100)
    (parent,) = (run for run in runs if run.data.tags.get("kind") == "search")
    assert parent.info.status == "FINISHED"
    assert parent.data.tags["best_trial"] == trials[0].key
    children = {run.data.tags["trial_key"]: run for run in runs if run.data.tags.get("kind") == "trial"}
    assert len(runs) == 1 + len(children), "no run stands twice"
    for trial in trials:
        child = children[trial.key]
        assert child.data.tags["mlflow.parentRunId"] == parent.info.run_id
        assert child.data.tags["stopped_by"] == trial.outcome
        assert child.info.status == ("FINISHED" if trial.outcome == "finished" else "KILLED")
        points = client.get_metric_history(child.info.run_id, "tune/fd")
        assert {point.step: point.value for point in points} == trial.scores
        assert len(points) == len(trial.scores)
        assert child.data.params["options.q"] == str(trial.values["options.q"])
    assert job.folder == folder


def test_under_pbt_trials_take_over_others_and_stay_in_the_space(root):
    job, trials, _ = run_search(root, "schedule", scheduler="pbt", rungs=2, trials=4, concurrency=2)
    assert [trial.outcome for trial in trials] == ["finished"] * 4
    assert all(sorted(trial.scores) == [256, 512] for trial in trials)
    for trial in trials:
        for dimension in job.config.dimensions:
            assert dimension.clean(trial.values[dimension.path]) == trial.values[dimension.path]


def test_a_posthoc_search_ends_with_a_width_and_its_confirmation(root):
    job, trials, confirmed = run_search(root, "widths")
    assert [trial.outcome for trial in trials] == ["finished"] * 3
    assert len({trial.values["std"] for trial in trials}) == 3
    assert [one["seed"] for one in confirmed] == [5]
    assert len(list((job.folder / "posthoc").iterdir())) == 1, "trained once"


def test_a_search_goes_on_without_mlflow(root, caplog):
    job = make_job(root, "schedule")
    blocked = root / "file"
    blocked.write_text("no folder")
    recorder = SearchRecorder(TrackingConfig(), job, blocked)
    trial = Trial("a", {}, {1: 2.0})
    trial.save(trial_folder(job, "a"))
    recorder.record(trial, over=True)
    recorder.close(trial, [])
    assert len([record for record in caplog.records if "the files of the search are complete" in record.message]) == 1
