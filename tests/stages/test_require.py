"""A stage whose input is not there says in a line which stage makes it."""

import shutil

import pytest

from cmcore.closure import ROOT
from cmcore.errors import DataError
from cmcore.pipeline.common import load
from stages import evaluate, reference, train, tune

SEARCH = "tune: {lr: {base: ect, init: edm, teacher: none, space: {train: {lr: {loguniform: [1e-4, 1e-3]}}}}}"


@pytest.fixture
def folders(tmp_path, monkeypatch):
    """Those of a project in the working directory, where nothing has been made yet."""
    text = (ROOT / "tests/e2e/tiny.yaml").read_text(encoding="utf-8")
    (tmp_path / "params.yaml").write_text(f"{text}\n{SEARCH}\n", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return load().folders


def made(folders, *stages):
    """Files that stand for what these stages write."""
    results = {
        "prepare": [folders.manifest, folders.weights("random"), folders.weights("none")],
        "reference": [folders.reference / "reference.json"],
        "train@edm": [folders.weights("edm")],
        "train@ect": [folders.weights("ect")],
    }
    for path in (path for stage in stages for path in results[stage]):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


@pytest.mark.parametrize(
    ("stage", "there", "missing", "maker"),
    [
        (reference.main, (), "data/manifest.json", "prepare"),
        (lambda: train.main("edm"), (), "data/manifest.json", "prepare"),
        (lambda: train.main("ect"), ("prepare",), "runs/edm/weights.safetensors", "train@edm"),
        (lambda: evaluate.main("ect"), ("prepare", "train@edm", "train@ect"), "reference", "reference"),
        (lambda: evaluate.main("ect"), ("prepare", "reference", "train@edm"), "runs/ect", "train@ect"),
        (lambda: tune.main("lr"), ("prepare", "train@edm"), "reference", "reference"),
    ],
)
def test_a_missing_input_is_named_with_the_stage_that_makes_it(folders, stage, there, missing, maker):
    made(folders, *there)
    with pytest.raises(DataError, match=f"^outputs/tiny/{missing} is not there; first run `dvc repro {maker}`$"):
        stage()


def test_weights_of_random_initialisation_come_from_prepare(folders):
    made(folders, "prepare")
    folders.weights("random").unlink()
    with pytest.raises(DataError, match=r"runs/random/weights.safetensors is not there; first run `dvc repro prepare`"):
        train.main("edm")


def test_a_folder_that_dvc_emptied_is_missing_too(folders):
    made(folders, "prepare", "reference", "train@edm", "train@ect")
    shutil.rmtree(folders.runs / "ect")
    (folders.runs / "ect").mkdir()
    with pytest.raises(DataError, match="dvc repro train@ect"):
        evaluate.main("ect")
