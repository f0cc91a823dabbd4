"""What goes away is of no more use, and whatever is left gives the same bits without training."""

import os
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from tiny_runs import PARAMS, tiny_inputs

from cmcore import numbers
from cmcore.assemble.models import save_empty
from cmcore.assemble.training import FINAL, WEIGHTS, Inputs, fingerprint, work_folder
from cmcore.closure import ROOT
from cmcore.commands.clean import clean
from cmcore.config import ConfigError
from cmcore.pipeline.common import Setup, load
from cmcore.pipeline.files import copy_into_place
from cmcore.pipeline.tidy import size, tidy, tidy_search
from cmcore.train.session import CHECKPOINT
from stages.train import train

HOW = {"compute": {"backend": "inline", "threads": 1, "device": "cpu"}, "tracking": {"mlflow": False}}


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """A project whose two runs are trained and sealed, and known to two workload files; one has been changed since."""
    root = tmp_path_factory.mktemp("clean")
    runs = {name: PARAMS["runs"][name] for name in ("edm", "ect")}
    params = {**PARAMS, "runs": runs, **HOW}
    (root / "workloads").mkdir()
    for path in ("params.yaml", "workloads/tiny.yaml"):
        (root / path).write_text(yaml.safe_dump(params))
    (root / "workloads/other.yaml").write_text(yaml.safe_dump({**params, "workload": "other"}))
    setup, inputs = load(root), tiny_inputs(root)
    copy_into_place({setup.folders.data: inputs.data, setup.folders.weights("random"): inputs.init})
    save_empty(setup.folders.weights("none"), "none")
    for name in runs:
        copy_into_place({setup.folders.runs / name: train(setup, setup.project.run(name), inputs_of(setup, name))})
    return root


@pytest.fixture
def root(made, tmp_path) -> Path:
    """A copy for the test alone."""
    return shutil.copytree(made, tmp_path / "project")


def inputs_of(setup: Setup, name: str) -> Inputs:
    run = setup.project.run(name)
    return Inputs(setup.folders.data, setup.folders.weights(run.init), setup.folders.weights(run.teacher))


def folder_of(root: Path, name: str) -> Path:
    setup = load(root)
    return work_folder(setup.folders.work, "tiny", name, fingerprint(setup.project.run(name), inputs_of(setup, name)))


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def test_a_finished_run_keeps_its_results_and_its_pictures(root):
    folder = folder_of(root, "ect")
    left = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert CHECKPOINT not in left
    assert {"final/weights.safetensors", "final/history.jsonl", "final/summary.json", "history.jsonl"} <= left
    assert len([name for name in left if name.startswith("final/snapshots/")]) == 2
    beside = [name for name in left if name.startswith("snapshots/")]
    assert len(beside) == 2
    assert all(name.endswith(".png") for name in beside)


def test_a_run_that_waits_for_its_seal_is_not_trained_again(root, monkeypatch):
    """What `make repro JOBS=n` and switching between workloads rely on."""
    setup = load(root)
    monkeypatch.setattr("stages.train.execute", lambda *_, **__: pytest.fail("it is trained again"))
    final = train(setup, setup.project.run("ect"), inputs_of(setup, "ect"))
    assert (final / WEIGHTS).read_bytes() == setup.folders.weights("ect").read_bytes()


def test_an_unfinished_run_keeps_everything(root):
    folder = folder_of(root, "ect")
    shutil.rmtree(folder / FINAL)
    (folder / CHECKPOINT).write_bytes(b"state")
    assert tidy(folder) == 0
    assert (folder / CHECKPOINT).exists()
    assert clean(root) == ["0 B freed"]
    assert (folder / CHECKPOINT).exists()


def test_what_every_workload_file_knows_stays(root):
    assert clean(root) == ["0 B freed"]
    assert folder_of(root, "edm").exists()


def test_a_run_that_no_file_describes_goes_and_says_how_large_it_was(root):
    old, bytes_ = folder_of(root, "ect"), size(folder_of(root, "ect"))
    for path in ("params.yaml", "workloads/tiny.yaml"):
        edit(root / path, "method: ect", "method: ect\n    options: {q: 3.0}")
    line, total = clean(root)
    assert line == f".work/tiny/{old.name} is of no run of any workload file: {numbers.size(bytes_, 'B', ' ')}"
    assert total == f"{numbers.size(bytes_, 'B', ' ')} freed"
    assert not old.exists()
    assert folder_of(root, "edm").exists()


@pytest.mark.parametrize("changed", ["params.yaml", "workloads/tiny.yaml"])
def test_one_file_that_describes_a_run_is_enough(root, changed):
    old = folder_of(root, "ect")
    edit(root / changed, "method: ect", "method: ect\n    options: {q: 3.0}")
    clean(root)
    assert old.exists()


def test_a_student_of_weights_that_are_not_sealed_yet_stays(root):
    """Its teacher was trained ahead of DVC: the outputs still hold an older one."""
    setup, folder = load(root), folder_of(root, "ect")
    setup.folders.weights("edm").write_bytes(setup.folders.weights("ect").read_bytes())
    assert folder_of(root, "ect") != folder
    assert clean(root) == ["0 B freed"]
    assert folder.exists()


@pytest.mark.parametrize("gone", ["outputs/tiny/data", "outputs/tiny/runs/random"])
def test_a_run_whose_fingerprint_cannot_be_known_stays(root, gone):
    folder = folder_of(root, "edm")
    shutil.rmtree(root / gone)
    clean(root)
    assert folder.exists()


def test_of_a_workload_file_that_is_wrong_everything_stays(root):
    folder = folder_of(root, "ect")
    for path in ("params.yaml", "workloads/tiny.yaml"):
        edit(root / path, "method: ect", "method: etc")
    assert clean(root) == ["0 B freed"]
    assert folder.exists()


def test_what_is_left_of_a_workload_without_a_file_goes_and_other_files_stay(root):
    for path in (".work/gone/edm-0123456789abcdef", ".work/tiny/tune/lr-0123456789abcdef", ".work/tiny/evaluate/edm"):
        (root / path).mkdir(parents=True)
        (root / path / "file").write_bytes(b"1234")
    (root / ".work/speeds.json").write_text("{}")
    assert len(clean(root)) == 3
    assert not (root / ".work/gone/edm-0123456789abcdef").exists()
    assert not (root / ".work/tiny/tune/lr-0123456789abcdef").exists()
    assert (root / ".work/tiny/evaluate/edm/file").exists()
    assert (root / ".work/speeds.json").exists()


def test_of_a_search_that_is_over_the_scores_stay(tmp_path):
    names = ("trial.json", "history.jsonl", CHECKPOINT, "snapshots/1.safetensors")
    for file in (*(f"trials/a/{name}" for name in names), f"confirm/x/{CHECKPOINT}", "confirm/x/final/weights"):
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_bytes(b"12345")
    assert tidy_search(tmp_path) == 15
    left = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()}
    assert left == {"trials/a/trial.json", "trials/a/history.jsonl", "confirm/x/final/weights"}
    assert tidy_search(tmp_path) == 0


def test_nothing_is_removed_while_a_stage_runs(root):
    (root / "stages.py").write_text("import sys; sys.stdin.read()")
    environment = {**os.environ, "PYTHONPATH": str(root)}
    process = subprocess.Popen([sys.executable, "-m", "stages"], cwd=root, env=environment, stdin=subprocess.PIPE)
    try:
        time.sleep(0.3)
        with pytest.raises(ConfigError, match="expected no stage of this project to run"):
            clean(root)
    finally:
        process.communicate()


def test_the_command_says_a_line(root):
    (root / "dvc.yaml").touch()
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-m", "cmcore.commands", "clean"],
        cwd=root,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "0 B freed\n"), done.stderr


def test_training_after_a_tidy_folder_gives_the_same_bits(root):
    setup, before = load(root), folder_of(root, "edm")
    fresh = replace(setup, folders=replace(setup.folders, root=root / "fresh"))
    final = train(fresh, setup.project.run("edm"), inputs_of(setup, "edm"))
    assert (final / WEIGHTS).read_bytes() == (before / FINAL / WEIGHTS).read_bytes()
