"""`cmlab sample`: what it writes, what it says, and its errors of one line."""

import re
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from stored import store

from cmcore.assemble.results import open_run
from cmcore.commands.app import main
from cmcore.evaluate.reference import reference
from cmcore.evaluate.settings import EvalConfig


def call(*words: str) -> int:
    """The exit code of a command line."""
    with pytest.raises(SystemExit) as end:
        main(words)
    return end.value.code if isinstance(end.value.code, int) else -1


@pytest.fixture
def project(tmp_path, monkeypatch) -> Iterator[Path]:
    """A project with weights, and a working directory below it."""
    (tmp_path / "dvc.yaml").touch()
    store(tmp_path, "ect")
    store(tmp_path, "edm")
    (tmp_path / "below").mkdir()
    monkeypatch.chdir(tmp_path / "below")
    return tmp_path


def test_a_grid_is_written_where_the_user_stands_and_the_line_says_how(project, capsys):
    assert call("sample", "ect", "--steps", "2", "--count", "16", "--seed", "3", "--out", "grid.png") == 0
    assert Image.open(project / "below/grid.png").size[0] >= 512
    said = capsys.readouterr().out.splitlines()[-1]
    assert re.fullmatch(
        r"16 images of ect \(EMA ema, multistep, NFE 2, levels 20, 1.5, seed 3\) in grid.png; \S+ images/s on \w+", said
    )


def test_the_images_are_those_of_the_run(project):
    assert call("sample", "ect", "-n", "5", "--steps", "2", "--out", "a.npz", "--batch", "2") == 0
    with np.load(project / "below/a.npz") as found:
        expected = open_run("ect", project).sample(5, nfe=2, batch=2)
        assert torch.equal(torch.from_numpy(found["images"]), expected)
        assert "labels" not in found


def test_labels_go_round(project):
    store(project, "ect", classes=10, conditional=True)
    assert call("sample", "ect", "-n", "3", "--labels", "4,7", "--out", "a.npz") == 0
    with np.load(project / "below/a.npz") as found:
        assert found["labels"].tolist() == [4, 7, 4]
        assert torch.equal(torch.from_numpy(found["images"]), open_run("ect", project).sample(3, labels=[4, 7, 4]))


def test_a_folder_and_a_path_are_meant_from_where_the_user_stands(project, capsys):
    assert call("sample", "../outputs/tiny/runs/edm", "--solver", "euler", "--steps", "4", "-n", "2", "-o", "some") == 0
    assert len(list((project / "below/some").iterdir())) == 2
    assert "euler, NFE 4, seed 0" in capsys.readouterr().out


def test_no_project_is_needed_for_a_file(project, tmp_path_factory, monkeypatch):
    monkeypatch.chdir(tmp_path_factory.mktemp("elsewhere"))
    file = project / "outputs/tiny/runs/ect/weights.safetensors"
    assert call("sample", str(file), "-n", "1", "--ema", "raw") == 0
    assert Path("samples.png").is_file()


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["nothing"], 2, "runs.nothing: expected one of edm, ect"),
        (["ect", "--steps", "3", "--levels", "2"], 1, "--levels: expected 2, one for every step after the first"),
        (["ect", "--levels", "a,2"], 1, "--levels: expected numbers with commas between, got 'a,2'"),
        (["ect", "--levels", "30"], 1, "--levels: expected descending levels"),
        (["ect", "--solver", "heun"], 1, "--solver: expected none"),
        (["edm", "--solver", "rk4"], 1, "--solver: expected one of euler"),
        (["edm", "--guidance", "2"], 1, "--guidance: expected 1, as the network sees no labels"),
        (["ect", "--labels", "3"], 1, "--labels: expected none, as the network is unconditional"),
        (["ect", "--ema", "slow"], 1, "{root}/outputs/tiny/runs/ect/weights.safetensors: expected one of the profiles"),
        (["ect", "--ema", "0.05"], 1, "{root}/outputs/tiny/runs/ect/snapshots: expected snapshots with power profiles"),
        (["ect", "--out", "a.wav"], 1, "{root}/below/a.wav: expected NAME.png, NAME.npz, or a folder"),
        (["ect", "--out", "a.jpg"], 1, "{root}/below/a.jpg: expected NAME.png, NAME.npz, or a folder"),
        (["ect", "--count", "0"], 2, "Invalid value for '-n' / '--count'"),
        (["ect", "--device", "tpu"], 2, "Invalid value for '--device'"),
        (["."], 1, "{root}/below: expected weights.safetensors"),
        (["../params.yaml"], 1, "{root}/below/../params.yaml: expected a weight file of this project"),
    ],
)
def test_an_error_is_one_line_and_comes_before_any_file(project, capsys, words, code, message):
    assert call("sample", *words) == code
    said = capsys.readouterr().err
    assert said.startswith("cmlab sample: " + message.format(root=project))
    assert said.count("\n") == 1
    assert not list((project / "below").iterdir())


def test_levels_are_searched_for_and_drawn(project, capsys):
    """With the reference that the stage would write, of an extractor that nobody trained."""
    images = np.random.default_rng(0).integers(0, 256, (150, 1, 8, 8), dtype=np.uint8)
    real = SimpleNamespace(
        images=images, labels=np.zeros(150, np.int64), classes=0, digest="d", captions=None, words=None
    )
    reference(real, EvalConfig(kid_size=100, samples=200), "tiny", project / "outputs/tiny/reference")
    assert call("levels", "ect", "--steps", "2", "--samples", "100") == 0
    said = capsys.readouterr().out
    assert re.search(r"^2 steps: distance \S+ with --levels \S+$", said, re.MULTILINE)
    assert {path.name for path in (project / "reports/tiny/levels").iterdir()} == {"ect.json", "ect.png", "ect.svg"}


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["nothing"], 2, "runs.nothing: expected one of edm, ect"),
        (["ect"], 1, "outputs/tiny/reference is not there; first run `dvc repro reference`"),
        (["ect", "--steps", "1"], 2, "Invalid value for '--steps'"),
    ],
)
def test_an_error_of_a_search_for_levels_is_one_line(project, capsys, words, code, message):
    assert call("levels", *words) == code
    said = capsys.readouterr().err
    assert said.startswith(f"cmlab levels: {message}")
    assert said.count("\n") == 1


def test_a_program_is_exported(project, capsys):
    assert call("export", "ect", "--to", "torch", "--out", "ect.pt2") == 0
    assert capsys.readouterr().out == "ect.pt2: (x, sigma) of ect for torch.export.load\n"
    assert (project / "below/ect.pt2").is_file()


def test_a_pipeline_that_is_exported_says_what_it_is(project, capsys):
    assert call("export", "ect", "--to", "diffusers", "--out", "pipe") == 0
    reason = "net.kind: expected adm, the layout of UNet2DModel, got mlp"
    assert capsys.readouterr().out == (
        f"pipe: ect for diffusers as a pipeline of its own ({reason}), with 0 measured values on its card\n"
    )


def test_a_run_without_an_adapter_has_none_to_export(project, capsys):
    assert call("export", "ect", "--to", "peft", "--out", "a") == 1
    said = capsys.readouterr().err
    assert said.endswith("expected the weights of a run with train.adapter, got those of one without\n")
    assert said.count("\n") == 1
    assert not (project / "below/a").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["ect", "--to", "torch", "--out", "ect"], "--out: expected NAME.pt2, got ect"),
        (["ect", "--to", "onnx", "--out", "ect.pt2"], "--out: expected NAME.onnx, got ect.pt2"),
        (["ect", "--to", "torch", "--nfe", "3", "--out", "a.pt2"], "nfe: expected one of 1, 2, got 3"),
        (["ect", "--to", "diffusers", "--out", "a.pt2"], "--out: expected a folder without an ending, got a.pt2"),
        (["ect", "--to", "diffusers", "--nfe", "3", "--out", "a"], "nfe: expected one of 1, 2, got 3"),
        (["edm", "--to", "diffusers", "--out", "a"], "edm: expected a few-step model whose steps begin at noise"),
    ],
)
def test_an_error_of_an_export_is_one_line(project, capsys, words, message):
    assert call("export", *words) == 1
    said = capsys.readouterr().err
    assert said.startswith(f"cmlab export: {message}")
    assert said.count("\n") == 1
