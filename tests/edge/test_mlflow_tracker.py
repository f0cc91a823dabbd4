"""Against a real sqlite store, and against servers that are down or never answer."""

import logging
import math
import socket
import subprocess
import sys
import time

import pytest

from cmcore.edge.mlflow_tracker import MlflowTracker
from cmcore.edge.mlflow_writer import Store, metric_name
from cmcore.edge.settings import TrackingConfig

mlflow = pytest.importorskip("mlflow")
TAGS = {
    "workload": "toy",
    "method": "ect",
    "fingerprint": "f00d",
    "git_revision": "abc",
    "data_digest": "d1",
    "run": "r",
}


def tracker(root, fingerprint="f00d", **options) -> MlflowTracker:
    config = options.pop("config", TrackingConfig())
    return MlflowTracker(Store.of(config, root, "toy"), TAGS | {"fingerprint": fingerprint}, **options)


def runs(root):
    client = mlflow.MlflowClient(tracking_uri=Store.of(TrackingConfig(), root, "toy").uri)
    groups = client.search_experiments(filter_string="name = 'toy'")
    assert len(groups) == 1
    return client, client.search_runs([groups[0].experiment_id])


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("store")


def test_everything_said_arrives(root, tmp_path):
    (tmp_path / "grid.png").write_bytes(b"picture")
    t = tracker(root, "first")
    t.params({"train": {"lr": 0.1, "betas": (0.9, 0.99)}, "note": "x" * 7000})
    for images in range(0, 3000, 2):
        t.metrics({"train/loss": 1.0 + images, "bad": math.nan}, images)
    t.artifact(tmp_path / "grid.png", "grids")
    t.tag({"nfe": "1"})
    t.tag({"nfe": "1, 2"})
    t.close()
    client, (run,) = runs(root)
    assert run.data.tags["nfe"] == "1, 2"
    assert run.info.status == "FINISHED"
    assert {key: run.data.tags[key] for key in TAGS} == TAGS | {"fingerprint": "first"}
    assert run.data.params["train.lr"] == "0.1"
    assert len(run.data.params["note"]) == 6000
    history = client.get_metric_history(run.info.run_id, "train/loss")
    assert [(m.step, m.value) for m in history] == [(n, 1.0 + n) for n in range(0, 3000, 2)]
    assert "bad" not in run.data.metrics
    assert run.data.tags["nonfinite"].startswith("bad at 0")
    assert [a.path for a in client.list_artifacts(run.info.run_id, "grids")] == ["grids/grid.png"]
    assert t.dropped == 0


def test_a_repeated_run_is_continued_without_duplicates(root):
    for stop in (3, 5):
        t = tracker(root, "again")
        t.params({"lr": 1})
        for images in range(stop):
            t.metrics({"loss": images / 7}, images)
        t.close(failed=stop == 3)
    client, found = runs(root)
    (run,) = [r for r in found if r.data.tags["fingerprint"] == "again"]
    assert [m.step for m in client.get_metric_history(run.info.run_id, "loss")] == [0, 1, 2, 3, 4]
    assert run.info.status == "FINISHED"


def test_a_lost_answer_doubles_nothing(root, monkeypatch):
    """The server takes the points, and the connection breaks before it says so."""
    send, calls = mlflow.MlflowClient.log_batch, []

    def losing(self, name, metrics=(), *rest):
        send(self, name, metrics, *rest)
        calls.append(len(metrics))
        if metrics and sum(map(bool, calls)) == 1:
            raise OSError("connection reset")

    monkeypatch.setattr(mlflow.MlflowClient, "log_batch", losing)
    t = tracker(root, "lost", pause=0.05)
    for images in range(3):
        t.metrics({"loss": 1.0 + images}, images)
    while not any(calls):
        time.sleep(0.01)
    time.sleep(0.5)  # a second attempt
    t.close()
    client, found = runs(root)
    (run,) = [r for r in found if r.data.tags["fingerprint"] == "lost"]
    assert [m.step for m in client.get_metric_history(run.info.run_id, "loss")] == [0, 1, 2]
    assert t.dropped == 0


def test_one_bad_item_does_not_take_the_others_with_it(root, tmp_path, caplog):
    t = tracker(root, "bad-item")
    t.artifact(tmp_path / "absent.png")
    t.metrics({"loss": 1.0}, 1)
    t.close()
    _, found = runs(root)
    (run,) = [r for r in found if r.data.tags["fingerprint"] == "bad-item"]
    assert run.data.metrics == {"loss": 1.0}
    assert t.dropped == 1
    assert "1 items dropped" in caplog.text


SCRIPT = """
import sys
from pathlib import Path
from cmcore.edge.mlflow_tracker import MlflowTracker
from cmcore.edge.mlflow_writer import Store
from cmcore.edge.settings import TrackingConfig
root, fingerprint = sys.argv[1:]
store = Store.of(TrackingConfig(), Path(root), "toy")
t = MlflowTracker(store, {"run": "r", "fingerprint": fingerprint}, patience=60)
t.metrics({"loss": 1.0}, 1)
t.close()
sys.exit(t.dropped)
"""


def test_four_processes_open_a_new_store_at_once(tmp_path):
    """Two of them log the same run: four processes, three runs, one experiment."""
    names = ["a", "b", "c", "c"]
    jobs = [subprocess.Popen([sys.executable, "-c", SCRIPT, str(tmp_path), n], stderr=subprocess.PIPE) for n in names]
    for job in jobs:
        _, errors = job.communicate(timeout=120)
        assert job.returncode == 0, errors.decode()
    _, found = runs(tmp_path)
    assert sorted(run.data.tags["fingerprint"] for run in found) == ["a", "b", "c"]
    assert all(run.data.metrics == {"loss": 1.0} for run in found)


@pytest.fixture
def silent_server():
    """Accepts connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


@pytest.mark.parametrize("kind", ["down", "silent"])
def test_a_useless_server_costs_a_run_nothing(tmp_path, caplog, silent_server, kind):
    uri = silent_server if kind == "silent" else "http://127.0.0.1:9"
    t = tracker(tmp_path, config=TrackingConfig(uri=uri), capacity=1000, patience=1.0, pause=0.1)
    start = time.perf_counter()
    for images in range(5000):
        t.metrics({"loss": 1.0}, images)
    assert time.perf_counter() - start < 1.0
    with caplog.at_level(logging.WARNING):
        t.close()
    assert time.perf_counter() - start < 5.0
    assert t.dropped == 5000
    assert len([r for r in caplog.records if "MLflow at" in r.message]) == 1


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("eval/fd_nfe1", "eval/fd_nfe1"),
        ("loss|λ=1", "loss__=1".replace("=", "_")),
        ("/a//b/", "a/b"),
        ("../x", "x"),
        ("", "_"),
    ],
)
def test_metric_names_are_made_acceptable(name, expected):
    assert metric_name(name) == expected


def test_the_variable_names_the_server_before_the_parameter(monkeypatch, tmp_path):
    config = TrackingConfig(uri="http://from-params")
    assert Store.of(config, tmp_path, "toy") == ("http://from-params", "toy")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://from-variable")
    assert Store.of(config, tmp_path, "toy").uri == "http://from-variable"
