"""Samples of prompts: by default the data's captions, drawn by number; and the errors of one line."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from stored import PARAMS, WORDS, store, store_reader

from cmcore.assemble.models import ModelShape, drawn, usual_words
from cmcore.assemble.project import parse_project
from cmcore.assemble.results import open_run
from cmcore.assemble.training import WEIGHTS, image_batches
from cmcore.budget.plan import Costs, data_shape
from cmcore.commands.app import main
from cmcore.config import ConfigError
from cmcore.data.images import WORDS as FILE
from cmcore.data.images import ImageData
from cmcore.data.settings import DataConfig
from cmcore.data.sources.prepare import prepare
from cmcore.diffusion.inputs import NO_LABEL
from cmcore.errors import DataError
from cmcore.pipeline.sizes import check_data, count_parameters
from cmcore.rng import Draws
from cmcore.sample.base import Sampler
from cmcore.tensors import to_float


def test_a_weight_file_knows_its_words(tmp_path: Path):
    store_reader(tmp_path)
    path = tmp_path / "outputs/tiny/runs/edm" / WEIGHTS
    assert open_run(path).model.shape == ModelShape(3, 16, 0, WORDS)


def test_images_depend_on_the_prompt(tmp_path: Path):
    store_reader(tmp_path)
    run = open_run("edm", tmp_path)
    red, blue = (run.sample(2, labels=[caption] * 2) for caption in ("a red circle", "a blue circle"))
    assert not torch.equal(red, blue)
    mixed = run.sample(2, labels=["a red circle", "a Blue circle"], batch=1)
    torch.testing.assert_close(mixed, torch.stack([red[0], blue[1]]), rtol=0, atol=1)


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        (["a green circle"], "prompt: expected words of the captions that were learned .*, got 'green'"),
        (["a red circle a"], "prompt: expected at most 3 words, got 4"),
        ([3], r"prompt: expected 1 captions, as the network reads them, got \[3\]"),
        (None, "prompt: expected a caption, as there are no data at hand whose captions could be drawn"),
    ],
)
def test_wrong_prompts_are_refused(tmp_path: Path, labels: Any, said: str):
    store_reader(tmp_path)
    with pytest.raises(ValueError, match=said):
        open_run("edm", tmp_path).sample(1, labels=labels)


@pytest.mark.parametrize(("classes", "wanted"), [(0, "none"), (10, "class labels")])
def test_a_network_that_reads_no_captions_refuses_them(tmp_path: Path, classes: int, wanted: str):
    store(tmp_path, "ect", classes=classes, conditional=classes > 0)
    with pytest.raises(ValueError, match=f"prompt: expected {wanted}, as the network reads no captions, got 'a cat'"):
        open_run("ect", tmp_path).sample(1, labels=["a cat"])


def test_captions_of_the_data_are_drawn_by_number(tmp_path: Path):
    store_reader(tmp_path)
    data = tmp_path / "outputs/tiny/data"
    data.mkdir()
    (data / "manifest.json").write_text("{}")
    captions = np.array([WORDS.encode(text) for text in ("a red circle", "a blue square", "a blue square")])
    np.save(data / FILE, captions)
    run = open_run("edm", tmp_path)
    told = run.labels(300, seed=1)
    assert told is not None
    assert torch.equal(told[:7], run.labels(7, seed=1))
    counts = [(told == torch.tensor(row)).all(1).sum().item() for row in captions[:2]]
    assert sum(counts) == 300
    assert 70 < counts[0] < 130
    assert torch.equal(told, drawn(run.model.shape, range(300), 1, captions=torch.from_numpy(captions)))
    assert (told[told[:, 0] == NO_LABEL]).numel() == 0


def test_the_command_takes_prompts_in_turn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any):
    (tmp_path / "dvc.yaml").touch()
    store_reader(tmp_path)
    monkeypatch.chdir(tmp_path)

    def call(*words: str) -> int:
        with pytest.raises(SystemExit) as end:
            main(words)
        return end.value.code if isinstance(end.value.code, int) else -1

    prompts = ("--prompt", "a red circle", "--prompt", "a blue square")
    assert call("sample", "edm", "-n", "3", *prompts, "--out", "a.npz") == 0
    with np.load(tmp_path / "a.npz") as found:
        assert found["labels"].tolist() == [WORDS.encode(p) for p in (prompts[1], prompts[3], prompts[1])]
    assert call("sample", "edm", "-n", "1", "--prompt", "a cat", "--out", "a.npz") != 0
    assert "--prompt: expected words of the captions that were learned" in capsys.readouterr().err
    store(tmp_path, "ect")
    assert call("sample", "ect", "-n", "1", "--prompt", "a cat", "--out", "a.npz") != 0
    assert "--prompt: expected none, as the network reads no captions" in capsys.readouterr().err


def test_samples_are_led_away_from_a_negative_prompt(tmp_path: Path):
    """In one step of the Euler method the image is D at sigma_max, so the formula can be read off it."""
    store_reader(tmp_path)
    run, told = open_run("edm", tmp_path), ["a red circle"] * 2
    sampler = run.sampler(2, solver="euler", guidance=1.7)

    def images(sampler: Sampler, caption: str = told[0]) -> torch.Tensor:
        opened = replace(run, to_images=torch.clone)
        return opened.sample(2, sampler=sampler, labels=[caption] * 2, seed=3)

    plain, other = (images(run.sampler(1, solver="euler_linear", guidance=1.0), c) for c in (told[0], "a blue square"))
    away = images(run.away_from(run.sampler(1, solver="euler_linear", guidance=1.7), "a blue square"))
    torch.testing.assert_close(away, other + 1.7 * (plain - other), rtol=0, atol=1e-4)
    assert (plain - other).abs().max() > 1e-2
    assert torch.equal(images(run.away_from(sampler, "")), images(sampler))
    assert (images(run.away_from(sampler, "blue")) - images(sampler)).abs().max() > 1e-2


def test_samples_are_led_away_from_a_class(tmp_path: Path):
    store(tmp_path, "edm", classes=3, conditional=True)
    run = replace(open_run("edm", tmp_path), to_images=torch.clone)
    plain = run.sampler(1, solver="euler_linear")
    away = run.away_from(run.sampler(1, solver="euler_linear", guidance=1.7), 2)
    one, two, found = (
        run.sample(1, sampler=sampler, labels=[k], seed=3) for sampler, k in ((plain, 1), (plain, 2), (away, 1))
    )
    torch.testing.assert_close(found, two + 1.7 * (one - two), rtol=0, atol=1e-4)
    for wrong, said in ((3, "expected 1 classes from 0 to 2, got"), ("cat", "expected class labels, as the network")):
        with pytest.raises(ValueError, match=f"^negative: {said}"):
            run.away_from(away, wrong)


def test_the_command_takes_a_negative_prompt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any):
    (tmp_path / "dvc.yaml").touch()
    store_reader(tmp_path)
    monkeypatch.chdir(tmp_path)

    def call(*words: str) -> int:
        with pytest.raises(SystemExit) as end:
            main(("sample", *words, "-n", "2", "--out", "a.npz"))
        return end.value.code if isinstance(end.value.code, int) else -1

    told = ("edm", "--prompt", "a red circle")
    made = []
    for more in ((), ("--negative", ""), ("--negative", "a blue square"), ("--guidance", "1")):
        assert call(*told, *more) == 0
        with np.load("a.npz") as found:
            made.append(found["images"])
    assert np.array_equal(made[0], made[1])
    assert len({images.tobytes() for images in made}) == 3
    said = [line for line in capsys.readouterr().out.splitlines() if line.startswith("2 images of edm")]
    assert "heun, guidance 2.0, NFE 10" in said[0]
    assert "heun, guidance 2.0 away from 'a blue square', NFE 10" in said[2]
    (tmp_path / "a.npz").unlink()
    for words, message in (
        ((*told, "--negative", "a cat"), "expected words of the captions that were learned"),
        ((*told, "--negative", "a", "--guidance", "1"), "expected a guidance scale other than 1 beside it"),
        (("ect", "--negative", "a"), "expected none, as the model has learned no guidance"),
    ):
        if words[0] == "ect":
            store(tmp_path, "ect", classes=3, conditional=True)
        assert call(*words) == 1
        assert capsys.readouterr().err.startswith(f"cmlab sample: --negative: {message}")
    assert not (tmp_path / "a.npz").exists()
    store(tmp_path, "edm", classes=3, conditional=True)
    assert call("edm", "--labels", "0", "--guidance", "2", "--negative", "1") == 0
    with np.load("a.npz") as found:
        run = open_run("edm", tmp_path)
        expected = run.sample(2, sampler=run.away_from(run.sampler(guidance=2.0), 1), labels=[0, 0])
        assert np.array_equal(found["images"], expected)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"net": PARAMS["net"]}, r"runs.edm.net.kind: expected one that reads captions \(.*unet.*\), .*got 'mlp'"),
        ({"data": {"source": "digits"}}, "conditional: expected images with captions, .*got 'digits'"),
    ],
)
def test_parameters_that_do_not_suit_are_refused(tmp_path: Path, changes: dict[str, Any], said: str):
    import yaml

    store_reader(tmp_path)
    params = yaml.safe_load((tmp_path / "params.yaml").read_text()) | changes
    with pytest.raises(ConfigError, match=said):
        parse_project(params)


def test_a_step_is_told_the_captions_of_its_images(tmp_path: Path):
    project = store_reader(tmp_path)
    prepare(replace(project.sections.data, count=64), tmp_path / "data")
    data = ImageData.open(tmp_path / "data")
    assert data.words == usual_words(project.sections.data)  # what plans count with before there are data
    batch = image_batches(data, project.run("edm"), "cpu")(Draws(0, 0, 64))
    assert isinstance(batch.labels, torch.Tensor)
    told = {(image.numpy().tobytes(), tuple(row.tolist())) for image, row in zip(batch.x, batch.labels, strict=True)}
    assert data.captions is not None
    images = [to_float(torch.from_numpy(np.array(image))).numpy().tobytes() for image in data.images]
    assert told == {(image, tuple(row.tolist())) for image, row in zip(images, data.captions, strict=True)}
    assert ModelShape.of(data, "words") == ModelShape(3, 16, 0, data.words)


def test_data_without_captions_are_refused(tmp_path: Path):
    project = store_reader(tmp_path)
    manifest = prepare(DataConfig(), tmp_path / "digits")
    with pytest.raises(ConfigError, match="conditional: expected images with captions, got none"):
        check_data(project, manifest)
    with pytest.raises(DataError, match="conditional: expected images with captions"):
        ModelShape.of(ImageData.open(tmp_path / "digits"), "words")


def test_the_plan_counts_what_words_cost(tmp_path: Path):
    project = store_reader(tmp_path)
    shape = data_shape(project, tmp_path / "none")
    run, plain = project.run("edm"), Costs(replace(shape, words=None))
    more = Costs(shape).of(run, "forward").flops.total() - plain.of(run, "forward").flops.total()
    assert more > 0
    assert Costs(shape).parameters(run) > plain.parameters(run)
    assert count_parameters(project)["edm"] == Costs(shape).parameters(run)
