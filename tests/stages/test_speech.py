"""Sounds through every stage: recordings of words in, and out a page that plays what the networks say."""

import base64
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from every_stage import every_stage
from sounds import WORDS, write_words

from cmcore.assemble.project import parse_project
from cmcore.assemble.results import open_run
from cmcore.commands.app import main
from cmcore.config import ConfigError
from cmcore.data.images import open_data, open_images
from cmcore.data.mel import described, samples, seconds, to_sounds
from cmcore.data.wav import read_wav, trimmed
from cmcore.evaluate.reference import facts_of
from cmcore.sample.stream import drawn_captions

SIDE = 16
RUNS = ("edm", "ect")


def parameters() -> dict[str, Any]:
    """The tiny workload of the pipeline's tests, on recordings with their words, in latents."""
    params = yaml.safe_load((Path(__file__).parents[1] / "e2e/tiny.yaml").read_text(encoding="utf-8"))
    codec = {"channels": 2, "factor": 2, "width": 8, "images": 512, "batch": 32}
    params["data"] = {
        "source": "speech", "path": "words", "subfolder": "train", "test": "own", "resolution": SIDE, "channels": 1,
        "codec": codec,
    }  # fmt: skip
    params["conditional"] = "words"
    params["net"] = {
        "kind": "unet", "model_channels": 8, "channel_mult": [1], "blocks": 1, "attention_resolutions": [4],
        "dropout": 0.0, "patch": 2,
    }  # fmt: skip
    params["train"] |= {"images": 512}
    params["eval"] |= {"nearest": 16, "scan": [], "reference": {"images": 4096, "width": 8, "features": 16}}
    return params | {"compute": {"backend": "inline", "threads": 1, "device": "cpu"}, "tracking": {"mlflow": False}}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project folder after all stages."""
    root = tmp_path_factory.mktemp("speech") / "project"
    root.mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        write_words(Path("words/train"), 120)
        write_words(Path("words/test"), 30, seed=1)
        Path("params.yaml").write_text(yaml.safe_dump(parameters(), sort_keys=False), encoding="utf-8")
        every_stage(RUNS)
    return root


@pytest.fixture
def project(made: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder as the working directory."""
    monkeypatch.chdir(made)
    return made


def test_the_data_say_what_codec_they_are_of(project: Path):
    data, images = open_data(Path("outputs/tiny/data")), open_images(Path("outputs/tiny/data"))
    assert images is not None
    assert data.shape == (2, 8, 8)
    assert images.shape == (1, SIDE, SIDE)
    assert data.manifest["sound"] == images.manifest["sound"] == described(SIDE)
    assert len(open_data(Path("outputs/tiny/data/test"))) == 30


def test_the_reader_is_judged_on_test_voices_and_on_what_both_codecs_make_of_them(project: Path):
    facts, test = facts_of(Path("outputs/tiny/reference")), open_images(Path("outputs/tiny/data/test"))
    assert test is not None
    assert facts.extractor.kind == "reader"
    found = {(r.provenance.run, r.metric): r for r in facts.anchors}
    assert found["test", "captions"].value > 0.9
    for name in ("reconstruction", "resynthesis"):
        assert found[name, "captions"].provenance.samples == 30
        assert 0 < found[name, "reconstruction"].value < 1
    # Frequencies of tones survive the way to a sound and back.
    assert found["resynthesis", "captions"].value > 0.8
    table = Path("reports/tiny/tables/comparison.md").read_text(encoding="utf-8")
    assert f"of test images {found['test', 'captions'].value:.1%}" in table
    assert "30 images, encoded and decoded: root mean square error" in table
    assert "30 images, made sounds (Griffin-Lim) and images again: root mean square error" in table


def test_samples_are_measured_by_the_words_that_they_were_told(project: Path):
    data = open_data(Path("outputs/tiny/data"))
    assert data.words is not None
    assert data.captions is not None
    told = [data.words.decode(row) for row in drawn_captions(range(64), 1, torch.from_numpy(data.captions)).tolist()]
    for name in RUNS:
        records = json.loads(Path(f"reports/tiny/metrics/{name}.json").read_text(encoding="utf-8"))["records"]
        assert {"fd", "fd_test", "captions"} <= {record["metric"] for record in records}
        with np.load(f"outputs/tiny/samples/{name}.npz") as arrays:
            assert arrays["told"].tolist() == told[: len(arrays["nfe_1"] if name == "ect" else arrays["nfe_5"])]


def test_the_page_plays_the_samples_and_names_their_words(project: Path):
    page = Path("reports/tiny/index.html").read_text(encoding="utf-8")
    assert len(page) < 1_000_000
    assert "media-src data:" in page
    played = re.findall(r'<audio [^>]*src="data:audio/wav;base64,([^"]+)" aria-label="(\w+), (\w+), [^"]*"', page)
    assert [run for *_, run in played] == ["EDM"] * 3 + ["ECT"] * 3
    assert [word for _, word, _ in played[:3]] == [word for _, word, _ in played[3:]]
    assert {word for _, word, _ in played} == set(WORDS)
    with np.load("outputs/tiny/samples/ect.npz") as arrays:
        images, told = arrays["nfe_1"], arrays["told"].tolist()
    for content, word, _ in played[3:]:
        sound = to_sounds(torch.from_numpy(images[told.index(word)][None]))[0].numpy()
        found = read_wav(base64.b64decode(content), word)
        np.testing.assert_allclose(found, trimmed(sound), atol=1e-4)


def test_speed_is_told_against_the_length_of_a_sound(project: Path):
    times = json.loads(Path("outputs/tiny/times/sampling/ect.json").read_text(encoding="utf-8"))
    table = Path("reports/tiny/tables/measures.csv").read_text(encoding="utf-8")
    heads, *rows = [line.split(",") for line in table.splitlines()]
    row = next(dict(zip(heads, row, strict=False)) for row in rows if row[:2] == ["ect", "1"])
    latency = next(one["latency"] for one in times["rows"] if one["nfe"] == 1)
    assert float(row["real_time_factor"]) == pytest.approx(latency / seconds(SIDE), rel=1e-2)
    assert "Real-time factor: latency over the 0.17 s of a sound" in Path("reports/tiny/tables/measures.md").read_text()


def test_prompts_are_written_as_a_wav_file(project: Path, capsys: pytest.CaptureFixture[str]):
    words = ["sample", "ect", "--prompt", "high", "--prompt", "low", "-n", "3", "--out", "said.wav", "--device", "cpu"]
    with pytest.raises(SystemExit) as ended:
        main(words)
    assert ended.value.code == 0
    assert "said.wav" in capsys.readouterr().out
    sound = read_wav(Path("said.wav").read_bytes(), "said.wav")
    assert sound.shape == (3 * samples(SIDE),)
    images = open_run("ect").sample(3, labels=["high", "low", "high"])
    np.testing.assert_allclose(sound, to_sounds(images).flatten().numpy(), atol=1e-4)


@pytest.mark.parametrize("codec", [None, {"channels": 2, "factor": 2}])
def test_sounds_are_not_played_backwards(codec: Any):
    params = parameters()
    params["data"]["codec"] = codec
    params["train"] |= {"flip": True, "lr": 1e-3}
    with pytest.raises(ConfigError, match=r"^runs\.edm\.train\.flip: expected False for data\."):
        parse_project(params)
