"""`cmlab edit`: files in, files out, and its errors of one line."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from stored import store

from cmcore.commands.app import main


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
