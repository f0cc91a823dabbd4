"""Against a real sqlite store: whatever MLflow knows before, afterwards it knows everything, once."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from tiny_runs import PARAMS, tiny_inputs

from cmcore.assemble.results import open_run
from cmcore.closure import ROOT
from cmcore.commands.sync import sync
from cmcore.data.png import to_png
from cmcore.edge import mlflow_writer
from cmcore.edge.mlflow_model import pyfunc
from cmcore.edge.mlflow_tracker import MlflowTracker
from cmcore.edge.mlflow_views import links
from cmcore.edge.mlflow_writer import Store, TrackingError
from cmcore.edge.settings import TrackingConfig
from cmcore.evaluate.records import MetricRecord, Provenance, Replicate, RunFacts, RunMetrics
from cmcore.pipeline.common import Setup, load
from cmcore.pipeline.files import copy_into_place, write_json
from cmcore.pipeline.process import expected as known
from cmcore.tracking import jsonl
from stages.train import Inputs, train

mlflow = pytest.importorskip("mlflow")


def record(metric: str, value: float, nfe: int, images: int, fingerprint: str) -> MetricRecord:
    source = {"workload": "tiny", "run": "edm", "method": "edm", "fingerprint": fingerprint, "sampler": "s", "ema": "e"}
    seen = {"nfe": nfe, "images": images, "seed": 1, "extractor": "cnn", "extractor_digest": "c", "samples": 9}
    provenance = Provenance(**source, **seen, reference_digest="d" * 64, reference_count=9)
    return MetricRecord(metric=metric, value=value, spread=0.0, spread_of="images", provenance=provenance)


def write_report(setup: Setup, fingerprint: str) -> None:
    """A record like that of an evaluation."""
    facts = {"run": "edm", "method": "edm", "init": "random", "ema": "e", "parameters": 1, "images": 4096, "seed": 1}
    metrics = RunMetrics(
        facts=RunFacts(workload="tiny", **facts),
        records=tuple(record(metric, nfe / 3, nfe, 4096, fingerprint) for metric in ("fd", "recall") for nfe in (1, 2)),
        snapshots=tuple(record("fd", images / 7, 1, images, fingerprint) for images in (2048, 4096)),
    )
    write_json(setup.folders.reports / "metrics/edm.json", metrics.to_json())


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Setup:
    """A project with one run that was trained and evaluated while MLflow was off."""
    root = tmp_path_factory.mktemp("sync") / "project"
    root.mkdir()
    runs = {"edm": PARAMS["runs"]["edm"]}
    how = {"compute": {"backend": "inline", "threads": 1, "device": "cpu"}, "tracking": {"mlflow": False}}
    (root / "params.yaml").write_text(yaml.safe_dump({**PARAMS, "runs": runs, **how}))
    setup, inputs = load(root), tiny_inputs(root)
    copy_into_place({setup.folders.data: inputs.data})
    setup.folders.weights("random").parent.mkdir(parents=True)
    setup.folders.weights("none").parent.mkdir()
    shutil.copy(inputs.teacher, setup.folders.weights("none"))
    inputs.init.rename(setup.folders.weights("random"))
    final = train(
        setup, setup.project.run("edm"), Inputs(setup.folders.data, *map(setup.folders.weights, ("random", "none")))
    )
    copy_into_place({setup.folders.runs / "edm": final})
    write_report(setup, fingerprint(setup))
    grid = setup.folders.reports / "grids/edm.png"
    grid.parent.mkdir()
    grid.write_bytes(to_png(np.zeros((4, 1, 8, 8), np.uint8), columns=2))
    return setup


@pytest.fixture
def setup(made, request) -> Setup:
    """The project, with an experiment of the test's own in the store that all tests share."""
    return replace(made, tracking=TrackingConfig(experiment=request.node.name))


def fingerprint(setup: Setup) -> str:
    return json.loads((setup.folders.runs / "edm/summary.json").read_text())["fingerprint"]


def elsewhere(setup: Setup, root: Path) -> Setup:
    """A copy of the project's files, tracked in the same store."""
    shutil.copytree(setup.folders.root, root, ignore=shutil.ignore_patterns(".tracking"))
    store = f"sqlite:///{setup.folders.root}/.tracking/mlflow.db"
    return replace(setup, folders=replace(setup.folders, root=root), tracking=replace(setup.tracking, uri=store))


def found(setup: Setup):
    """A client and the runs of the experiment, by fingerprint."""
    client = mlflow.MlflowClient(setup.tracking.uri or f"sqlite:///{setup.folders.root}/.tracking/mlflow.db")
    group = client.get_experiment_by_name(setup.tracking.experiment)
    runs = client.search_runs([group.experiment_id])
    assert len({run.data.tags["fingerprint"] for run in runs}) == len(runs)
    return client, {run.data.tags["fingerprint"]: run for run in runs}


def points(client, run) -> Counter:
    """How often the run holds each point."""
    held = (client.get_metric_history(run.info.run_id, key) for key in run.data.metrics)
    return Counter((metric.key, metric.step, metric.value) for history in held for metric in history)


def history(setup: Setup) -> list[dict]:
    return list(jsonl.read(setup.folders.runs / "edm/history.jsonl"))


def evaluation() -> set:
    measured = [(metric, nfe) for metric in ("fd", "recall") for nfe in (1, 2)]
    return {
        *((f"eval/{metric}_nfe{nfe}", 0, nfe / 3) for metric, nfe in measured),
        *((f"eval_by_nfe/{metric}", nfe, nfe / 3) for metric, nfe in measured),
        *(("snapshots/fd_nfe1", images, images / 7) for images in (2048, 4096)),
    }


def expected(setup: Setup) -> Counter:
    """Every point of the files, once."""
    rows = history(setup)
    training = {(f"train/{name}", row["images"], row[name]) for row in rows for name in row if name != "images"}
    assert len(rows) == 8
    return Counter(training | evaluation())


def test_a_replay_gives_mlflow_everything_once_however_often(setup):
    (first,) = sync(setup)
    assert f"sent {len(expected(setup))} points" in first
    client, runs = found(setup)
    run = runs[fingerprint(setup)]
    assert points(client, run) == expected(setup)
    assert (run.info.run_name, run.info.status) == ("edm", "FINISHED")
    assert {key: run.data.tags[key] for key in ("run", "workload", "method", "kind", "init", "ema", "nfe")} == {
        "run": "edm", "workload": "tiny", "method": "edm", "kind": "run", "init": "random", "ema": "e", "nfe": "1, 2",
    }  # fmt: skip
    assert len(run.data.tags["data_digest"]) == 16
    assert "git_revision" not in run.data.tags
    assert (run.data.params["train.lr"], run.data.params["net.config.hidden"]) == ("0.001", "16")
    there = {
        file.path for name in ("weights", "grids", "records") for file in client.list_artifacts(run.info.run_id, name)
    }
    assert there == {"weights/weights.safetensors", "grids/edm.png", "records/edm.json"}

    (second,) = sync(setup)
    assert second == f"edm ({fingerprint(setup)}): nothing was missing"
    client, runs = found(setup)
    again = runs[fingerprint(setup)]
    assert points(client, again) == expected(setup)
    assert (again.info.end_time, again.data.params) == (run.info.end_time, run.data.params)


def test_a_run_whose_tracking_broke_off_is_completed(setup):
    tags = {"run": "edm", "fingerprint": fingerprint(setup), "git_revision": "abc"}
    live = MlflowTracker(Store.of(setup.tracking, setup.folders.root, "tiny"), tags)
    live.params({"train": {"lr": 0.001}})
    for row in history(setup)[:5]:
        live.metrics({f"train/{name}": row[name] for name in row if name != "images"}, row["images"])
    live.close(failed=True)
    assert live.dropped == 0
    sync(setup)
    client, runs = found(setup)
    (run,) = runs.values()
    assert points(client, run) == expected(setup)
    assert run.info.status == "FINISHED"
    assert run.data.tags["git_revision"] == "abc"
    assert "diffusion.rho" in run.data.params


@pytest.mark.parametrize("after", [1, 2, 4])
def test_a_server_that_dies_in_the_middle_is_continued(setup, monkeypatch, after):
    """Also where it took the last request and only the answer was lost."""
    monkeypatch.setattr(mlflow_writer, "POINTS_AT_ONCE", 10)
    send, calls = mlflow.MlflowClient.log_batch, []

    def dying(self, *args, **options):
        calls.append(send(self, *args, **options))
        if len(calls) == after:
            raise mlflow.exceptions.MlflowException("Max retries exceeded\nwith url: /api")

    with monkeypatch.context() as patch:
        patch.setattr(mlflow.MlflowClient, "log_batch", dying)
        with pytest.raises(TrackingError, match="did not take run edm: Max retries exceeded with url"):
            sync(setup)
    client, runs = found(setup)
    before = points(client, runs[fingerprint(setup)])
    assert before.total() < expected(setup).total()
    sync(setup)
    client, runs = found(setup)
    assert points(client, runs[fingerprint(setup)]) == expected(setup)


def add_seed(setup: Setup) -> str:
    """Train and measure a second seed; the result is the fingerprint of its training."""
    inputs = Inputs(setup.folders.data, *map(setup.folders.weights, ("random", "none")))
    final = train(setup, setup.project.replicate("edm", 1), inputs)
    copy_into_place({setup.folders.run("edm", 1): final})
    mark = json.loads((final / "summary.json").read_text())["fingerprint"]
    path = setup.folders.reports / "metrics/edm.json"
    metrics = RunMetrics.from_json(json.loads(path.read_text()))
    records = tuple(replace(one, value=one.value + 2, provenance=replace(one.provenance, fingerprint=mark))
                    for one in metrics.records)  # fmt: skip
    write_json(path, replace(metrics, replicates=(Replicate(seed=2, records=records),)).to_json())
    return mark


@pytest.mark.parametrize("outputs", [True, False])
def test_every_training_seed_is_a_run_below_that_of_the_row(setup, tmp_path, outputs):
    sync(setup)  # it knew one seed before
    more = elsewhere(setup, tmp_path / "more")
    second, first = add_seed(more), fingerprint(setup)
    assert second != first
    if not outputs:
        shutil.rmtree(more.folders.outputs)
    lines = sync(more)
    assert [line.split(":")[0] for line in lines] == [f"edm ({mark})" for mark in (f"{first}-seeds", first, second)]
    client, runs = found(more)
    assert len(runs) == 3
    parent = runs[f"{first}-seeds"]
    assert [runs[mark].data.tags["mlflow.parentRunId"] for mark in (first, second)] == [parent.info.run_id] * 2
    assert "mlflow.parentRunId" not in parent.data.tags
    assert {key: parent.data.tags[key] for key in ("run", "kind", "seeds")} == {
        "run": "edm", "kind": "row", "seeds": "1, 2",
    }  # fmt: skip
    held = {(key, step): value for key, step, value in points(client, parent)}
    each = [(metric, nfe) for metric in ("fd", "recall") for nfe in (1, 2)]
    assert held == {
        **{(f"eval/{metric}_nfe{nfe}", 0): pytest.approx(nfe / 3 + 1) for metric, nfe in each},
        **{(f"eval_std/{metric}_nfe{nfe}", 0): pytest.approx(2**0.5) for metric, nfe in each},
        **{(f"eval_by_nfe/{metric}", nfe): pytest.approx(nfe / 3 + 1) for metric, nfe in each},
    }
    assert points(client, runs[first]) == expected(setup)
    own = points(client, runs[second])
    assert own["eval/fd_nfe2", 0, 2 / 3 + 2] == own["eval_by_nfe/fd", 2, 2 / 3 + 2] == 1
    assert not any(key.startswith("snapshots/") for key, _, _ in own)
    assert {key: runs[second].data.tags[key] for key in ("seed", "replicate", "kind", "run")} == {
        "seed": "2", "replicate": "1", "kind": "run", "run": "edm",
    }  # fmt: skip
    if outputs:
        assert sum(key == "train/loss" for key, _, _ in own) == 8
        assert runs[second].data.params["train.seed"] == "2"
        assert runs[second].data.params["train.lr"] == "0.001"
        assert [file.path for file in client.list_artifacts(runs[second].info.run_id, "weights")]
    assert all(line.endswith("nothing was missing") for line in sync(more))


def with_page(setup: Setup, root: Path) -> Setup:
    """A copy of the project that has a report, with the experiment's name for its models."""
    whole = elsewhere(setup, root)
    (whole.folders.reports / "index.html").write_text("the page")
    return whole


def test_the_runs_of_the_report_stand_below_their_reproduction(setup, tmp_path):
    whole = with_page(setup, tmp_path / "whole")
    second, first = add_seed(whole), fingerprint(setup)
    lines = sync(whole)
    client, runs = found(whole)
    (top,) = (run for run in runs.values() if run.data.tags["kind"] == "reproduction")
    mark = top.data.tags["fingerprint"]
    assert lines[0].startswith(f"reproduction {mark}: ")
    assert lines[-1] == "models: best-1-step is edm, best-2-step is edm"
    assert (top.info.run_name, top.info.status) == (f"reproduction {mark[:8]}", "FINISHED")
    assert "**1 runs of tiny**, each from up to 2 training seeds" in top.data.tags["mlflow.note.content"]
    assert [file.path for file in client.list_artifacts(top.info.run_id)] == ["index.html"]
    row = runs[f"{first}-seeds"]
    assert row.data.tags["mlflow.parentRunId"] == top.info.run_id
    assert [runs[one].data.tags["mlflow.parentRunId"] for one in (first, second)] == [row.info.run_id] * 2
    assert [runs[one].data.tags["compared"] for one in (f"{first}-seeds", first, second)] == ["yes", "no", "no"]
    assert {run.data.tags["reproduction"] for run in runs.values()} == {mark}
    assert [row.info.run_name, *(runs[one].info.run_name for one in (first, second))] == [
        "edm", "edm seed 1", "edm seed 2",
    ]  # fmt: skip
    note = runs[second].data.tags["mlflow.note.content"]
    assert note.endswith(f"Frechet distance: {1 / 3 + 2:.4g} at 1 NFE, {2 / 3 + 2:.4g} at 2 NFE.")
    again = sync(whole)
    assert [line for line in again if not line.endswith("nothing was missing")] == [lines[-1]]
    assert len(client.search_model_versions(f"name = '{setup.tracking.experiment}'")) == 1


def test_one_training_seed_stands_directly_below_and_a_newer_reproduction_takes_it(setup, tmp_path):
    whole = with_page(setup, tmp_path / "whole")
    sync(whole)
    _, runs = found(whole)
    (old,) = (run for run in runs.values() if run.data.tags["kind"] == "reproduction")
    run = runs[fingerprint(setup)]
    assert (run.data.tags["mlflow.parentRunId"], run.data.tags["compared"]) == (old.info.run_id, "yes")
    second = add_seed(whole)
    sync(whole)
    _, runs = found(whole)
    (new,) = (
        run for run in runs.values()
        if run.data.tags["kind"] == "reproduction" and run.info.run_id != old.info.run_id
    )  # fmt: skip
    row = runs[f"{fingerprint(setup)}-seeds"]
    assert row.data.tags["mlflow.parentRunId"] == new.info.run_id
    assert runs[second].data.tags["mlflow.parentRunId"] == row.info.run_id
    assert {run.data.tags["reproduction"] for run in (row, runs[second])} == {new.data.tags["fingerprint"]}


def test_the_experiment_keeps_the_pages_that_the_links_open(setup, tmp_path):
    whole = with_page(setup, tmp_path / "whole")
    store = Store.of(whole.tracking, whole.folders.root, "tiny")
    sync(setup)
    assert list(links(store, "http://m")) == ["runs"], "as there is no reproduction yet"
    sync(whole)
    client, _ = found(whole)
    group = client.get_experiment_by_name(setup.tracking.experiment)
    told = links(store, "http://m")
    assert told == {
        name: f"http://m/#/experiments/{group.experiment_id}/runs?viewStateShareKey={name}&compareRunsMode=CHART"
        for name in ("comparison", "training")
    }
    assert group.tags["mlflow.experimentKind"] == "custom_model_development"
    assert "**tiny**" in group.tags["mlflow.note.content"]
    for name in told:
        view = json.loads(group.tags[f"mlflow.sharedViewState.{name}"])
        shown = client.search_runs([group.experiment_id], view["searchFilter"])
        assert [run.data.tags["fingerprint"] for run in shown] == [fingerprint(setup)]
        cards = [card for card in view["compareRunCharts"] if card["type"] != "IMAGE"]
        drawn = {card["metricKey"] for card in cards}
        assert drawn <= {*shown[0].data.metrics}
        if name == "comparison":  # over function evaluations the Frechet distance alone, first of all
            over = [card for card in cards if card["metricKey"].startswith("eval_by_nfe/")]
            assert [card["metricKey"] for card in over if not card["deleted"]] == ["eval_by_nfe/fd"]
            assert {card["metricKey"] for card in over} == {
                key for key in shown[0].data.metrics if key.startswith("eval_by_nfe/")
            }
            assert view["compareRunSections"][0]["name"] == "eval_by_nfe"
        assert {card["metricSectionId"] for card in view["compareRunCharts"]} <= {
            section["uuid"] for section in view["compareRunSections"]
        }
        kinds = {card["metricKey"]: card["type"] for card in view["compareRunCharts"] if card["type"] != "IMAGE"}
        # MLflow draws a bar of a metric at step 0, and a line of one with any other step.
        for key, kind in kinds.items():
            steps = {point.step for point in client.get_metric_history(shown[0].info.run_id, key)}
            assert (kind == "BAR") == (steps == {0})


def test_data_sets_are_logged_with_their_digests(setup):
    sync(setup)
    _, runs = found(setup)
    data = {one.dataset.name: one for one in runs[fingerprint(setup)].inputs.dataset_inputs}
    manifest = json.loads(setup.folders.manifest.read_text())
    assert data["tiny images"].dataset.digest == manifest["sha256"][:36]
    assert json.loads(data["tiny images"].dataset.source)["digest"] == manifest["sha256"]
    assert json.loads(data["tiny images"].dataset.profile)["images"] == manifest["count"]
    assert data["tiny reference"].dataset.digest == "d" * 36
    assert [(tag.key, tag.value) for tag in data["tiny reference"].tags] == [("mlflow.data.context", "evaluation")]
    sync(setup)
    _, runs = found(setup)
    assert len(runs[fingerprint(setup)].inputs.dataset_inputs) == 2


def test_samples_step_through_the_training(setup):
    folder = setup.folders.work / "tiny" / f"edm-{fingerprint(setup)}" / "snapshots"
    grids = {images: to_png(np.full((4, 1, 8, 8), images // 32, np.uint8), columns=2) for images in (2048, 4096)}
    for images, grid in grids.items():
        (folder / f"{images:09d}.png").write_bytes(grid)
    try:
        for _ in range(2):
            sync(setup)
            client, runs = found(setup)
            run = runs[fingerprint(setup)]
            names = sorted(Path(file.path).name for file in client.list_artifacts(run.info.run_id, "images"))
            assert [name.split("+")[:3] for name in names if name.endswith(".png")] == [
                ["samples", "step", "2048"], ["samples", "step", "4096"],
            ]  # fmt: skip
            assert run.data.tags["mlflow.loggedImages"] == "True"
    finally:
        for images in grids:
            (folder / f"{images:09d}.png").unlink()


def test_a_registered_model_is_data_alone_and_samples_as_the_command_does(setup, tmp_path, monkeypatch):
    whole = with_page(setup, tmp_path / "whole")
    sync(whole)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", whole.tracking.uri)
    monkeypatch.chdir(tmp_path)
    place = Path(mlflow.artifacts.download_artifacts(f"models:/{setup.tracking.experiment}@best-1-step"))
    kinds = {path.suffix or path.name for path in place.rglob("*") if path.is_file()}
    kinds -= {"registered_model_meta"}  # which the download adds
    assert kinds == {".safetensors", ".yaml", ".txt", ".json", "MLmodel", "run"}, "neither code nor a pickle"
    described = yaml.safe_load((place / "MLmodel").read_text())
    flavour = described["flavors"]["python_function"]
    assert flavour["loader_module"] == "cmcore.edge.mlflow_model"
    assert flavour.get("code") is None
    assert described["metadata"]["fingerprint"] == fingerprint(setup)
    model = pyfunc().load_model(f"models:/{setup.tracking.experiment}@best-1-step")
    run = open_run("edm", setup.folders.root)
    for steps in (0, 3):
        drawn = model.predict(pd.DataFrame({"count": [4, 2]}), params={"seed": 5, "steps": steps})
        expected_images = run.sample(6, sampler=run.sampler(steps), seed=5).numpy()
        assert drawn.dtype == np.uint8
        assert np.array_equal(drawn, expected_images)
    from mlflow.pyfunc import scoring_server

    answer = scoring_server.invocations(
        json.dumps({"dataframe_records": [{"count": 2}], "params": {"seed": 5}}), "application/json", model,
        model.metadata.get_input_schema(),
    )  # fmt: skip
    assert answer.status == 200
    assert np.array_equal(json.loads(answer.response)["predictions"], run.sample(2, seed=5).numpy())
    with pytest.raises(ValueError, match="count: expected from 1 to 10000 images, got 0"):
        model.predict(pd.DataFrame({"count": [0]}))


@pytest.mark.slow
def test_mlflow_serves_a_registered_model_from_a_process_of_its_own(setup, tmp_path):
    whole = with_page(setup, tmp_path / "whole")
    sync(whole)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    name = f"models:/{setup.tracking.experiment}@best-1-step"
    words = ("models", "serve", "-m", name, "--env-manager", "local", "--host", "127.0.0.1", "--port", str(port))
    environment = {**os.environ, "MLFLOW_TRACKING_URI": whole.tracking.uri, "PYTHONPATH": str(ROOT)}
    with (tmp_path / "log").open("wb") as log:
        server = subprocess.Popen(
            [sys.executable, "-m", "mlflow", *words], cwd=tmp_path, stdout=log, stderr=log, env=environment,
            start_new_session=True,
        )  # fmt: skip
    asked = json.dumps({"dataframe_records": [{"count": 2}], "params": {"seed": 5}}).encode()
    address, kind = f"http://127.0.0.1:{port}/invocations", {"Content-Type": "application/json"}
    try:
        answer, end = None, time.monotonic() + 150
        while answer is None:
            assert server.poll() is None, (tmp_path / "log").read_text()
            assert time.monotonic() < end, (tmp_path / "log").read_text()
            try:
                with urllib.request.urlopen(urllib.request.Request(address, asked, kind), timeout=30) as reply:
                    answer = json.loads(reply.read())
            except OSError:
                time.sleep(0.5)
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait(30)
    run = open_run("edm", setup.folders.root)
    assert np.array_equal(answer["predictions"], run.sample(2, seed=5).numpy())


def test_a_clone_with_reports_alone_tells_the_evaluation(setup, tmp_path):
    clone = elsewhere(setup, tmp_path / "clone")
    shutil.rmtree(clone.folders.outputs)
    sync(clone)
    client, runs = found(clone)
    run = runs[fingerprint(setup)]
    assert points(client, run) == Counter(evaluation())
    assert run.data.tags["data_digest"] == "d" * 16
    assert run.data.params == {}
    # The machine that trained it completes the same run.
    sync(setup)
    client, runs = found(setup)
    assert points(client, runs[fingerprint(setup)]) == expected(setup)


def test_reports_of_another_training_stay_apart(setup, tmp_path):
    clone = elsewhere(setup, tmp_path / "clone")
    write_report(clone, "another")
    assert [line.split(":")[0] for line in sync(clone)] == [f"edm ({fingerprint(setup)})", "edm (another)"]
    client, runs = found(clone)
    assert points(client, runs["another"]) == Counter(evaluation())
    assert points(client, runs[fingerprint(setup)]) == expected(setup) - Counter(evaluation())


def test_parameters_of_a_run_that_the_file_no_longer_describes_are_not_invented(setup, tmp_path):
    clone = elsewhere(setup, tmp_path / "clone")
    params = clone.folders.root / "params.yaml"
    params.write_text(params.read_text().replace("lr: 0.001", "lr: 0.002"))
    sync(replace(load(clone.folders.root), tracking=clone.tracking))
    _, runs = found(clone)
    logged = runs[fingerprint(setup)].data.params
    assert "train.lr" not in logged
    assert (logged["net.config.hidden"], logged["train.seed"], logged["method"]) == ("16", "1", "edm")


def test_nothing_to_tell_is_said(setup, tmp_path):
    clone = elsewhere(setup, tmp_path / "clone")
    shutil.rmtree(clone.folders.outputs)
    shutil.rmtree(clone.folders.reports)
    assert sync(clone) == ["tiny: no outputs and no reports to tell of; `cmlab repro` makes them"]


def test_a_record_file_is_read_once(setup, monkeypatch):
    path, opened, text = setup.folders.reports / "metrics/edm.json", Counter[Path](), Path.read_text

    def read_text(self: Path, *words: str, **how: str) -> str:
        opened.update([self])
        return text(self, *words, **how)

    monkeypatch.setattr(Path, "read_text", read_text)
    sync(setup)
    assert opened[path] == 1


def test_a_damaged_file_is_one_sentence(setup, tmp_path):
    clone = elsewhere(setup, tmp_path / "clone")
    (clone.folders.reports / "metrics/edm.json").write_text('{"records": [')
    with pytest.raises(TrackingError, match="the files of run edm cannot be read: ") as caught:
        sync(clone)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", ["down", "silent"])
def test_a_server_that_does_not_answer_is_one_sentence(setup, monkeypatch, kind):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = 9 if kind == "down" else server.getsockname()[1]
        away = replace(setup, tracking=TrackingConfig(uri=f"http://127.0.0.1:{port}"))
        with pytest.raises(
            TrackingError, match=rf"^MLflow at http://127.0.0.1:{port} did not take run edm: "
        ) as caught:
            sync(away)
    assert "\n" not in str(caught.value)
    assert isinstance(caught.value, known())
