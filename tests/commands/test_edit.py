"""`cmlab edit`: files in, files out, and its errors of one line."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from stored import PARAMS, store

from cmcore.assemble.models import ModelShape
from cmcore.commands.app import main
from cmcore.config import read
from cmcore.data.codec import decoding_of
from cmcore.data.images import open_data
from cmcore.data.latent_space import unnormalise
from cmcore.data.settings import DataConfig
from cmcore.data.sources.prepare import prepare


def call(*words: str) -> int:
    """The exit code of a command line."""
    with pytest.raises(SystemExit) as end:
        main(words)
    return end.value.code if isinstance(end.value.code, int) else -1


@pytest.fixture
def project(tmp_path, monkeypatch) -> Iterator[Path]:
    """A project with weights, an image and a mask, as the working directory."""
    (tmp_path / "dvc.yaml").touch()
    store(tmp_path, "ect")
    store(tmp_path, "edm")
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "in.png")
    Image.fromarray(pixels[:4, :4]).save(tmp_path / "small.png")
    Image.fromarray(pixels[:5, :7]).save(tmp_path / "odd.png")
    Image.fromarray(np.uint8(255) * (np.arange(64).reshape(8, 8) < 32).astype(np.uint8)).save(tmp_path / "mask.png")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def pixels(file: Path) -> np.ndarray:
    return np.asarray(Image.open(file))


@pytest.mark.parametrize("run", ["ect", "edm"])
def test_inpainting_keeps_every_known_byte(project, capsys, run):
    words = ("edit", run, "--task", "inpaint", "--image", "in.png", "--mask", "mask.png", "--out", "out.png")
    assert call(*words, "--steps", "5") == 0
    given, found = pixels(project / "in.png"), pixels(project / "out.png")
    assert found.shape == (8, 8)
    assert np.array_equal(found[4:], given[4:])
    assert not np.array_equal(found[:4], given[:4])
    assert "the known part is off by at most 0.0e+00, as 8-bit pixels by 0 of 255" in capsys.readouterr().out


def test_several_results_of_a_small_image(project):
    words = ("edit", "ect", "--task", "super-resolution", "--image", "small.png", "-n", "3", "-o", "out.npz")
    assert call(*words, "--steps", "2") == 0
    with np.load(project / "out.npz") as found:
        assert found["images"].shape == (3, 1, 8, 8)
        assert not np.array_equal(found["images"][0], found["images"][1])


@pytest.mark.parametrize(
    "words",
    [["--task", "stroke", "--image", "in.png"], ["--task", "denoise", "--image", "in.png", "--sigma", "0.5"],
     ["--task", "interpolate"], ["--task", "super-resolution", "--image", "in.png", "--factor", "4"]],
    ids=lambda words: words[1],
)  # fmt: skip
def test_the_other_tasks_write_an_image(project, words):
    assert call("edit", "ect", *words) == 0
    assert (project / "edited.png").is_file()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--task", "inpaint", "--image", "in.png"], "--mask: expected one for inpainting"),
        (["--task", "inpaint", "--mask", "mask.png"], "--image: expected a file for inpaint, got none"),
        (["--task", "interpolate", "--image", "in.png"], "--image: expected none for interpolate, got in.png"),
        (["--task", "stroke", "--image", "in.png", "--mask", "mask.png"], "--mask: expected none for stroke"),
        (["--task", "stroke", "--image", "no.png"], "--image: expected an image file, got "),
        (["--task", "stroke", "--image", "params.yaml"], "{root}/params.yaml: cannot be read as an image"),
        (["--task", "stroke", "--image", "odd.png"], "--image: expected 8 x 8 pixels, got 7 x 5"),
        (["--task", "inpaint", "--image", "in.png", "--mask", "small.png"], "--mask: expected the size of the image"),
        (["--task", "super-resolution", "--image", "odd.png"], "--image: expected 8 x 8 pixels or a square"),
        (["--task", "super-resolution", "--image", "in.png", "--factor", "3"], "--factor: expected a divisor of 8"),
        (["--task", "colourise", "--image", "in.png"], "--task: expected a model of colour images"),
        (["--task", "denoise", "--image", "in.png"], "--sigma: expected a level from 0.002 to 20.0, got 0.0"),
        (["--task", "interpolate", "--label", "3"], "--label: expected none, as the network is unconditional, got 3"),
        (["--task", "stroke", "--image", "in.png", "--factor", "4"], "--factor: expected none for stroke, got 4"),
        (["--task", "denoise", "--image", "in.png", "--sigma", "1", "-n", "4"], "--count: expected none for denoise"),
        (["--task", "interpolate", "--sigma", "1"], "--sigma: expected none for interpolate, got 1.0"),
        (["--task", "denoise", "--image", "in.png", "--steps", "7"], "--steps: expected none for denoise, got 7"),
        (
            ["--task", "stroke", "--image", "in.png", "--method", "cd"],
            "--method: expected none, as ect is no weight file",
        ),
    ],
)
def test_an_error_is_one_line(project, capsys, words, message):
    assert call("edit", "ect", *words) == 1
    said = capsys.readouterr().err
    assert said.startswith("cmlab edit: " + message.format(root=project))
    assert said.count("\n") == 1
    assert not (project / "edited.png").exists()


def test_images_of_a_conditional_model_are_of_one_class(tmp_path, monkeypatch, capsys):
    (tmp_path / "dvc.yaml").touch()
    store(tmp_path, "ect", classes=3, conditional=True)
    monkeypatch.chdir(tmp_path)
    words = ("edit", "ect", "--task", "interpolate", "--count", "2", "--out", "way.npz")
    ways = []
    for label in ([], ["--label", "0"], ["--label", "1"]):
        assert call(*words, *label) == 0
        with np.load(tmp_path / "way.npz") as arrays:
            ways.append(arrays[arrays.files[0]])
    assert not np.array_equal(ways[1], ways[2])
    assert any(np.array_equal(ways[0], way) for way in ways[1:]) or call(*words, "--label", "2") == 0
    capsys.readouterr()
    assert call(*words, "--label", "3") == 1
    assert capsys.readouterr().err.startswith("cmlab edit: --label: expected a class from 0 to 2, got 3")


def test_edits_are_guided_away_from_a_class(tmp_path, monkeypatch, capsys):
    (tmp_path / "dvc.yaml").touch()
    store(tmp_path, "edm", classes=3, conditional=True)
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (8, 8), dtype=np.uint8)).save(tmp_path / "in.png")
    monkeypatch.chdir(tmp_path)
    for task, nfe in (
        (("stroke", "--image", "in.png", "--steps", "9"), 9),
        (("denoise", "--image", "in.png", "--sigma", "2"), 1),
        (("super-resolution", "--image", "in.png", "--steps", "9"), 9),
        (("interpolate",), 5),
    ):
        words, made = ("edit", "edm", "--label", "0", "--task", *task), []
        for more, twice in (((), 1), (("--guidance", "2"), 2), (("--guidance", "2", "--negative", "1"), 2)):
            assert call(*words, *more) == 0
            made.append(pixels(tmp_path / "edited.png").tobytes())
            assert f"NFE {twice * nfe}, " in capsys.readouterr().out
        assert len(set(made)) == 3, task
    (tmp_path / "edited.png").unlink()
    for more, message in (
        (("--negative", "1"), "--negative: expected a guidance scale other than 1 beside it"),
        (("--negative", "3", "--guidance", "2"), "--negative: expected 1 classes from 0 to 2, got [3]"),
        (("--negative", "a cat", "--guidance", "2"), "--negative: expected class labels, as the network reads no"),
        (("--guidance", "-1"), "--guidance: expected a scale from 0.0 to inf, got -1.0"),
    ):
        assert call("edit", "edm", "--task", "stroke", "--image", "in.png", *more) == 1
        assert capsys.readouterr().err.startswith(f"cmlab edit: {message}")
    assert not (tmp_path / "edited.png").exists()


def test_a_negative_prompt_changes_what_becomes_of_an_image_in_latents(latents, monkeypatch, capsys):
    monkeypatch.chdir(latents)
    shape = ModelShape.of(open_data(latents / "outputs/tiny/data"), "words")
    params = yaml.safe_load((latents / "params.yaml").read_text())
    same = {key: params[key] for key in ("data", "net", "conditional")}
    edm = {**PARAMS["runs"]["edm"], "options": {"label_dropout": 0.1}}
    store(latents, "edm", shape=shape, runs={**PARAMS["runs"], "edm": edm}, **same)
    words = ("edit", "edm", "--task", "stroke", "--image", "in.png", "--prompt", "a red circle", "--guidance", "2")
    made = []
    for more in ((), ("--negative", ""), ("--negative", "a blue square")):
        assert call(*words, *more) == 0
        made.append(pixels(latents / "edited.png").tobytes())
    assert made[0] == made[1] != made[2]
    capsys.readouterr()
    assert call("edit", "ect", *words[2:-2], "--negative", "a blue square") == 1
    assert "--negative: expected none, as the model has learned no guidance" in capsys.readouterr().err


def test_a_gallery_has_figure_errors_and_provenance(project, capsys):
    (project / "photos").mkdir()
    for index in range(3):
        (project / f"photos/{index}.png").write_bytes((project / "in.png").read_bytes())
    words = ("--images", "photos", "--steps", "3,5", "--factor", "2", "--out", "drawn")
    assert call("gallery", "ect", "edm", *words) == 0
    assert {path.name for path in (project / "drawn").iterdir()} == {"gallery.json", "gallery.png", "gallery.svg"}
    found = json.loads((project / "drawn/gallery.json").read_text())
    assert list(found["images"]) == ["0.png", "1.png", "2.png"]
    assert len(found["errors"]) == 8
    assert {"task", "model", "steps", "nfe", "error", "standard_error", "known_error"} == found["errors"][0].keys()
    assert "drawn/gallery.png shows 3 images" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["ect", "--images", "none"], "--images: expected a folder with image files, got none"),
        (["ect", "--images", ".", "--steps", "a"], "--steps: expected numbers with commas between"),
        (["ect", "--images", ".", "--factor", "3"], "--factor: expected a divisor of 8"),
        (["edm", "--images", ".", "--steps", "1"], "--steps: expected at least 3 for a diffusion model, got 1"),
    ],
)
def test_an_error_of_a_gallery_is_one_line(project, capsys, words, message):
    assert call("gallery", *words) == 1
    said = capsys.readouterr().err
    assert said.startswith("cmlab gallery: " + message)
    assert said.count("\n") == 1


@pytest.fixture(scope="module")
def latents(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project of scenes as latents of a trained codec, with weights of a network that reads their captions."""
    root = tmp_path_factory.mktemp("latents")
    (root / "dvc.yaml").touch()
    codec = {"channels": 2, "factor": 4, "width": 8, "images": 256, "batch": 32, "lr": 3e-3}
    data = {"source": "shapes", "count": 64, "resolution": 16, "channels": 3, "codec": codec}
    prepare(read(DataConfig, data, "data"), root / "outputs/tiny/data")
    net = {"kind": "unet", "model_channels": 8, "channel_mult": [1], "blocks": 1, "attention_resolutions": [4]}
    shape = ModelShape.of(open_data(root / "outputs/tiny/data"), "words")
    store(root, "ect", shape=shape, data=data, net={**net, "dropout": 0.0}, conditional="words")
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(root / "in.png")
    mask = np.zeros((16, 16), np.uint8)
    mask[:3, 5] = 255
    Image.fromarray(mask).save(root / "mask.png")
    return root


def edited(*words: str) -> np.ndarray:
    assert call("edit", "ect", "--image", "in.png", "--out", "out.npz", "-n", "2", *words) == 0
    with np.load("out.npz") as found:
        return found["images"]


def test_prompts_decide_what_becomes_of_an_image_in_latents(latents, monkeypatch):
    monkeypatch.chdir(latents)
    red, blue, both = (
        edited("--task", "stroke", "--sigma", "8", *(word for caption in captions for word in ("--prompt", caption)))
        for captions in (["a red circle"], ["a blue square"], ["a red circle", "a blue square"])
    )
    assert red.shape == (2, 3, 16, 16)
    assert not np.array_equal(red, blue)
    for found, expected in ((both[0], red[0]), (both[1], blue[1])):
        assert np.abs(found.astype(int) - expected).max() <= 1


def test_a_stroke_of_little_noise_is_the_image_as_the_codec_has_it(latents, monkeypatch):
    """The last step of a consistency model moves hardly anything at sigma_min, so the codec alone shows."""
    monkeypatch.chdir(latents)
    found = edited("--task", "stroke", "--sigma", "0.0021", "--steps", "1", "--prompt", "a red circle")
    space = decoding_of(latents / "outputs/tiny/data")
    assert space is not None
    given = torch.from_numpy(np.asarray(Image.open(latents / "in.png")).transpose(2, 0, 1).copy())[None]
    expected = space(space.encode(given)).numpy()
    assert np.abs(found[:1].astype(int) - expected).mean() < 3
    raw = space.decoder.encode(given)[:, :2]
    assert torch.allclose(unnormalise(space.encode(given), space.manifest), raw, atol=1e-5)


def test_inpainting_in_latents_keeps_every_known_pixel(latents, monkeypatch, capsys):
    monkeypatch.chdir(latents)
    found = edited("--task", "inpaint", "--mask", "mask.png", "--steps", "3", "--prompt", "a red circle")
    given = np.asarray(Image.open(latents / "in.png")).transpose(2, 0, 1)
    missing = np.asarray(Image.open(latents / "mask.png")) > 127
    assert (found[:, :, ~missing] == given[None][:, :, ~missing]).all()
    assert not (found[:, :, missing] == given[None][:, :, missing]).all()
    assert (
        "the known latents are off by at most 0.0e+00; known pixels are those of the image" in capsys.readouterr().out
    )


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["--task", "colourise"],
            "--task: expected one of inpaint, stroke, interpolate, as ect makes latents, got colou",
        ),
        (["--task", "stroke", "--prompt", "a green cat"], "--prompt: expected words of the captions that were learned"),
        (["--task", "stroke", "--label", "1"], "--label: expected none, as the network reads captions, got 1"),
    ],
)
def test_an_error_in_latents_is_one_line(latents, monkeypatch, capsys, words, message):
    monkeypatch.chdir(latents)
    assert call("edit", "ect", "--image", "in.png", *words) == 1
    said = capsys.readouterr().err
    assert said.startswith("cmlab edit: " + message)
    assert said.count("\n") == 1


def test_a_prompt_wants_a_network_that_reads(project, capsys):
    assert call("edit", "ect", "--task", "interpolate", "--prompt", "a cat") == 1
    assert capsys.readouterr().err.startswith("cmlab edit: --prompt: expected none, as the network reads no captions")
