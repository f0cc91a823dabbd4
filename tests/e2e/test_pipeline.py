"""A tiny workload through DVC, Ray and MLflow, in a repository of its own."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest

from cmcore.closure import ROOT
from cmcore.report.importance import Axis
from cmcore.report.search_files import write_search
from cmcore.report.searches import SearchResult, TrialResult

pytest.importorskip("dvc")
pytest.importorskip("ray")
mlflow = pytest.importorskip("mlflow")
pytestmark = [pytest.mark.timeout(600), pytest.mark.xdist_group("pipeline")]

RUNS = ("edm", "ect")
ECT, STEPS = EDITED = ("cmcore/methods/ect.py", "cmcore/train/steps.py")


class Repository:
    """A copy of the project with the tiny workload, under git and DVC."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.environment = {
            **os.environ,
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": "",
            "PYTHONDONTWRITEBYTECODE": "1",
            "DVC_SITE_CACHE_DIR": str(folder.with_name("site")),
        }
        self.environment.pop("RAY_AUTH_MODE")
        self.environment.pop("RAY_AUTH_TOKEN")

    def start(self, *command: str) -> subprocess.Popen:
        pipe = subprocess.PIPE
        return subprocess.Popen(
            [sys.executable, "-m", *command], cwd=self.folder, env=self.environment, stdout=pipe, stderr=pipe, text=True
        )

    def call(self, *command: str, code: int = 0) -> str:
        """Run a module, expect its exit code, and return what it said."""
        process = self.start(*command)
        out, errors = process.communicate()
        assert process.returncode == code, f"{out}\n{errors}"
        assert "Traceback" not in errors
        return out + errors

    def dvc(self, *arguments: str) -> str:
        return self.call("dvc", *arguments)

    def changed(self) -> set[str]:
        found = json.loads(self.dvc("status", "--json"))
        return {stage for stage, why in found.items() if why != ["always changed"]}

    def edit(self, old: str, new: str, file: str = "params.yaml") -> None:
        path = self.folder / file
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new, 1))

    def weights(self, run: str) -> bytes:
        return (self.folder / "outputs/tiny/runs" / run / "weights.safetensors").read_bytes()


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The repository after `make repro`, and what that said."""
    folder = tmp_path_factory.mktemp("e2e") / "project"
    ignore = shutil.ignore_patterns("__pycache__")
    for name in ("cmcore", "stages"):
        shutil.copytree(ROOT / name, folder / name, ignore=ignore)
    for name in ("dvc.yaml", "searches/dvc.yaml", ".dvcignore", ".gitignore", ".dvc/config", ".dvc/.gitignore"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, folder / name)
    shutil.copy(ROOT / "tests/e2e/tiny.yaml", folder / "params.yaml")
    git = ["git", "-C", str(folder), "-c", "user.name=a", "-c", "user.email=a@example.org"]
    for words in (["init", "-q"], ["add", "."], ["commit", "-qm", "The tiny project"]):
        subprocess.run([*git, *words], check=True)
    repository = Repository(folder)
    return repository, repository.call("cmcore.commands", "repro")


@pytest.fixture
def repository(made):
    """The repository; edits of its parameters are taken back after the test."""
    params = made[0].folder / "params.yaml"
    before = params.read_bytes()
    yield made[0]
    params.write_bytes(before)


@pytest.fixture
def sources(repository):
    """The repository; edits of EDITED are taken back after the test."""
    before = {repository.folder / name: (repository.folder / name).read_bytes() for name in EDITED}
    yield repository
    for path, content in before.items():
        path.write_bytes(content)
    repository.dvc("repro", "code")
    assert repository.changed() == set()


def test_it_announces_the_plan_and_ends_with_the_table(made):
    repository, said = made
    assert said.startswith("tiny: 8 stages to run: ")
    assert "[8/8] tabulate" in said
    table = (repository.folder / "reports/tiny/tables/headline.md").read_text()
    assert table in said
    assert all(f"| {run} |" in table for run in RUNS)
    assert "reports/tiny/index.html" in said


def test_everything_declared_is_there_and_nothing_surprises_git(made):
    repository, _ = made
    metrics = json.loads((repository.folder / "reports/tiny/metrics/ect.json").read_text())
    assert {record["provenance"]["nfe"] for record in metrics["records"]} == {1, 2}
    status = subprocess.run(
        ["git", "status", "--short"], cwd=repository.folder, capture_output=True, text=True, check=True
    )
    assert sorted(line.split()[1] for line in status.stdout.splitlines()) == ["dvc.lock", "reports/"]


def test_a_second_call_runs_nothing(made):
    repository, _ = made
    said = repository.dvc("repro")
    assert re.findall(r"Running stage '(\S+)'", said) == ["code"], "which looks at the files that DVC does not see"
    assert repository.changed() == set()
    said = repository.call("cmcore.commands", "repro")
    assert said.startswith("tiny: 0 stages to run\n")
    assert "| ect |" in said


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("q: 4.0", "q: 3.0", {"code", "train@ect", "evaluate@ect", "edit", "tabulate"}),
        ("samples: 64\n  batch", "samples: 65\n  batch", {"reference", *(f"evaluate@{run}" for run in RUNS)}),
        ("backend: ray", "backend: inline", set()),
        ("mlflow: true", "mlflow: false", set()),
        ("threads: 1", "threads: 2", set()),
    ],
)
def test_a_change_concerns_only_what_depends_on_it(repository, old, new, expected):
    repository.edit(old, new)
    assert repository.changed() == expected


@pytest.mark.parametrize("file", EDITED)
def test_docstrings_comments_and_layout_make_nothing_stale(sources, file):
    sources.edit('"""', '"""Edited. ', file)
    sources.edit("\n\n\n", "\n\n\n\n\n# A comment.\n", file)
    assert sources.changed() == {"code"}
    sources.dvc("repro", "code")
    assert sources.changed() == set()
    assert re.findall(r"Running stage '(\S+)'", sources.dvc("repro")) == ["code"]


def test_a_line_of_a_method_makes_its_runs_stale_and_nothing_else(sources):
    sources.edit("huber_c: float = ", "huber_c: float = 2 * ", ECT)
    assert sources.changed() == {"code"}, "DVC learns what it means from this stage"
    sources.dvc("repro", "code")
    assert sources.changed() == {"train@ect", "evaluate@ect", "edit"}, "and tabulate, once their results have changed"


def test_a_line_of_the_trainer_makes_every_run_stale(sources):
    sources.edit("\n\n\n", "\n\n\nSTALE = 1\n\n\n", STEPS)
    sources.dvc("repro", "code")
    every = {f"{stage}@{run}" for stage in ("train", "evaluate") for run in RUNS}
    assert sources.changed() == every | {"edit", "tabulate"}, "which counts the operations of a step"


def test_mlflow_has_every_run_once_with_its_tags(made):
    repository, _ = made
    client = mlflow.MlflowClient(f"sqlite:///{repository.folder}/.tracking/mlflow.db")
    experiment = client.get_experiment_by_name("tiny")
    runs = {run.info.run_name: run for run in client.search_runs([experiment.experiment_id])}
    (name,) = (name for name in runs if name not in RUNS)
    whole = runs.pop(name)
    assert whole.data.tags["kind"] == "reproduction"
    assert {a.path for a in client.list_artifacts(whole.info.run_id)} == {"figures", "index.html", "tables"}
    assert {run.data.tags["mlflow.parentRunId"] for run in runs.values()} == {whole.info.run_id}
    held = client.get_registered_model("tiny").aliases
    versions = {alias: client.get_model_version("tiny", str(held[alias])).tags["run"] for alias in held}
    assert versions == {"teacher": "edm", "best-1-step": "ect", "best-2-step": "ect"}
    assert sorted(runs) == sorted(RUNS)
    for name, run in runs.items():
        tags = run.data.tags
        assert (run.info.status, tags["run"], tags["workload"], tags["method"]) == ("FINISHED", name, "tiny", name)
        assert (tags["kind"], tags["ema"], tags["nfe"]) == ("run", "ema", "1, 2" if name == "ect" else "5")
        assert len(tags["fingerprint"]) == len(tags["data_digest"]) == 16
        assert len(tags["git_revision"]) == 40
        folders = {a.path for a in client.list_artifacts(run.info.run_id)}
        assert folders == {"grids", "images", "model", "records", "samples", "weights"}
        assert len(client.get_metric_history(run.info.run_id, "train/loss")) == 4
    curve = {m.step: m.value for m in client.get_metric_history(runs["ect"].info.run_id, "eval_by_nfe/fd")}
    assert sorted(curve) == [1, 2]
    for name, step in {"eval/fd_nfe1": 0, "snapshots/fd_nfe1": 2048, "train/loss": 2048}.items():
        last = client.get_metric_history(runs["ect"].info.run_id, name)[-1]
        assert last.step == step, "final values are bars, all else stands over images seen"
    assert runs["ect"].data.params["method_config.q"] == "4.0"


def test_a_search_gets_into_the_report_and_is_no_stage_of_it(repository):
    folder = repository.folder / "reports/tiny"
    before = (folder / "index.html").read_bytes()
    tried = [TrialResult("t", {"train.lr": 0.1}, {2048: 1.0}, "finished")]
    best = {"runs": {"ect": {"train": {"lr": 0.1}}}}
    compared = [{"seed": 5, "before": 1.0, "after": 2.0}]
    axes = [Axis("train.lr", 0.01, 1.0, lambda _: 0.5)]
    write_search(SearchResult("lr", "ect", "fd", best, compared, {}, tried), axes, folder / "tune/lr")
    repository.call("cmcore.commands", "report")
    page = (folder / "index.html").read_text()
    assert "<h2>Search lr</h2>" in page
    assert "too few to decide" in page
    assert (folder / "tables/search_lr.csv").exists()
    assert repository.changed() == set()
    assert re.findall(r"Running stage '(\S+)'", repository.dvc("repro")) == ["code"]
    shutil.rmtree(folder / "tune")
    repository.call("cmcore.commands", "report")
    assert (folder / "index.html").read_bytes() == before
    assert not (folder / "tables/search_lr.csv").exists()


def test_foreign_samples_have_a_row_that_stays(repository):
    folder = repository.folder / "reports/tiny"
    before = (folder / "index.html").read_bytes()
    pixels = np.random.default_rng(0).integers(256, size=(64, 8, 8, 1), dtype=np.uint8)
    np.savez(repository.folder.with_name("samples.npz"), arr_0=pixels)
    words = ("cmcore.commands", "score", "--name", "my model")
    said = repository.call(*words, "--samples", "../samples.npz", "--nfe", "1")
    assert "my model: 64 images, measured against tiny" in said
    tables = folder / "tables"
    row = next(line for line in (tables / "headline.md").read_text().splitlines() if line.startswith("| my model |"))
    assert "foreign samples" in row
    assert (tables / "foreign.csv").exists()
    assert repository.changed() == set()
    assert repository.call("cmcore.commands", "repro").startswith("tiny: 0 stages to run\n")
    shutil.rmtree(tables)
    assert "[1/1] tabulate" in repository.call("cmcore.commands", "repro")
    assert row in (tables / "headline.md").read_text()
    assert repository.changed() == set()
    repository.call(*words, "--remove")
    assert (folder / "index.html").read_bytes() == before
    assert not (tables / "foreign.csv").exists()
    assert repository.changed() == set()
    (folder / "scored").rmdir()


def test_results_come_back_from_the_run_cache(repository):
    reports = repository.folder / "reports"
    before = {path: path.read_bytes() for path in reports.rglob("*") if path.is_file()}
    for name in ("outputs", "reports", ".work"):
        shutil.rmtree(repository.folder / name, ignore_errors=True)
    (repository.folder / "dvc.lock").unlink()
    said = repository.call("cmcore.commands", "repro")
    kept = ["prepare", "reference", "edit", *(f"{kind}@{run}" for run in RUNS for kind in ("train", "evaluate"))]
    assert sorted(re.findall(r"\] (\S+): restored", said)) == sorted(kept)
    assert "[8/8] tabulate, about" in said
    assert {path: path.read_bytes() for path in reports.rglob("*") if path.is_file()} == before
    assert not (repository.folder / ".work/tiny").exists(), "nothing was computed"


def test_inline_gives_the_same_bytes(repository):
    """After the test of the cache, as the cache then knows two times that the same weights took."""
    before = repository.weights("ect")
    shutil.rmtree(repository.folder / ".work")
    repository.edit("backend: ray", "backend: inline")
    repository.dvc("repro", "--force", "--single-item", "train@ect")
    assert repository.weights("ect") == before


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("q: 4.0", "qq: 4.0", "runs.ect.options.qq: unknown key; did you mean 'q'?"),
        ("threads: 1", "threads: 0", "compute.threads: expected at least 1, got 0"),
        ("init: edm", "init: emd", "runs.ect.init: expected random or one of edm, got 'emd'"),
    ],
)
def test_a_wrong_parameter_is_one_line_before_any_compute(repository, old, new, message):
    repository.edit(old, new)
    said = repository.call("cmcore.commands", "repro", code=2)
    assert message in said
    assert len(said.splitlines()) == 1


def test_a_stage_checks_the_parameters_of_every_run(repository):
    repository.edit("q: 4.0", "q: -4.0")
    said = repository.call("stages", "prepare", code=2)
    assert said.startswith("prepare: runs.ect.options.q: expected")
    assert len(said.splitlines()) == 1


def test_killing_dvc_ends_the_stage_and_its_children(repository):
    repository.edit("images: 2048", "images: 20000000")
    process = repository.start("dvc", "repro", "--single-item", "train@ect")
    deadline = time.monotonic() + 90
    while not list(repository.folder.glob(".work/tiny/ect-*/checkpoint.safetensors")):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.2)
    family = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signal.SIGKILL)
    process.wait()
    _, alive = psutil.wait_procs(family, timeout=30)
    for orphan in alive:
        orphan.kill()
    assert alive == []
