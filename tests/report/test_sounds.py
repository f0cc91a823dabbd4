"""Sounds of the page: as many as there is room for, the same words for every run."""

import base64
from dataclasses import replace

import numpy as np
import pytest

from cmcore.data.mel import samples
from cmcore.data.wav import read_wav
from cmcore.report import sounds as module
from cmcore.report.readers import Inputs, RunReport, read_runs
from cmcore.report.sounds import sounds

SIDE = 24
TOLD = ("go", "go", "stop", "two", "go", "nine", "one", "six")


@pytest.fixture(scope="module")
def noisy(synthetic: Inputs) -> list[RunReport]:
    """Three runs whose samples are noise, which is loud from beginning to end."""
    rng = np.random.default_rng(0)
    images = rng.integers(60, 256, (len(TOLD), 1, SIDE, SIDE), dtype=np.uint8)
    runs = read_runs(synthetic)[:3]
    return [replace(run, told=TOLD, samples=dict.fromkeys(run.samples or {}, images)) for run in runs]


def test_every_run_says_the_first_different_words(noisy: list[RunReport]):
    found = sounds(noisy)
    assert [one.word for one in found] == ["go", "stop", "two", "nine", "one"] * 3
    assert {one.label for one in found} == {"1 NFE"}
    slow = replace(noisy[0], samples={"11 NFE": (noisy[0].samples or {})["11 NFE"]})
    assert {one.label for one in sounds([slow])} == {"11 NFE"}
    wave = read_wav(base64.b64decode(found[0].source.partition(",")[2]), "go")
    assert 0.8 * samples(SIDE) < len(wave) <= samples(SIDE)


@pytest.mark.parametrize(("room", "words"), [(0, 1), (100_000, 2), (150_000, 3)])
def test_fewer_words_where_there_is_no_room(
    noisy: list[RunReport], monkeypatch: pytest.MonkeyPatch, room: int, words: int
):
    """A sound is at most 23 * 256 samples of two bytes, of which base64 makes 4/3: three runs take 47 kB a word."""
    monkeypatch.setattr(module, "ROOM", room)
    found = sounds(noisy)
    assert [one.word for one in found] == ["go", "stop", "two"][:words] * 3
    assert not room or sum(len(one.source) for one in found) <= room


def test_runs_without_words_or_samples(noisy: list[RunReport]):
    assert [one.word for one in sounds([replace(noisy[0], told=())])] == [""] * 8
    assert sounds([replace(noisy[0], samples=None)]) == ()
