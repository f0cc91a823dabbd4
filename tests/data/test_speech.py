"""Sounds as data: WAV files of all kinds, recordings with captions, words of espeak-ng, and what is refused."""

import struct
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from pictures_on_disk import write_zip
from sounds import WORDS, tone, wav, write_words

from cmcore.config import ConfigError, read
from cmcore.data.codec import resynthesis
from cmcore.data.images import ImageData
from cmcore.data.mel import RATE, described, samples, to_pictures
from cmcore.data.settings import SPOKEN, DataConfig
from cmcore.data.sources import espeak
from cmcore.data.sources.espeak import Utterance, library, spoken
from cmcore.data.sources.prepare import prepare
from cmcore.data.sources.speech import ACCENTS, RATES, VOICES
from cmcore.data.wav import fitted, read_wav, trimmed, write_wav
from cmcore.errors import DataError


def config(path: Path | str = "", **fields: object) -> DataConfig:
    given = {"source": "speech", "path": str(path), "resolution": 16, "channels": 1, **fields}
    return read(DataConfig, given, "data")


@pytest.mark.parametrize(("width", "channels"), [(1, 1), (2, 1), (2, 2), (3, 1), (4, 2)])
def test_samples_of_every_width_are_read(width: int, channels: int):
    sound = tone(440)
    found = read_wav(wav(sound, width=width, channels=channels), "a.wav")
    np.testing.assert_allclose(found, sound, atol=1.1 / 2 ** (8 * width - 1))


@pytest.mark.parametrize("rate", [16000, 44100])
def test_another_rate_is_resampled_to_the_same_sound(rate: int):
    found = read_wav(wav(tone(440, rate=rate), rate=rate), "a.wav")
    assert abs(len(found) - 0.3 * RATE) <= 2
    np.testing.assert_allclose(found[500:6000], tone(440)[500:6000], atol=2e-3)


def test_a_sound_is_written_and_read_to_a_step_of_16_bits():
    np.testing.assert_allclose(read_wav(write_wav(tone(440)), "a.wav"), tone(440), atol=1e-4)
    assert np.abs(read_wav(write_wav(3 * tone(440)), "a.wav")).max() <= 1


def test_silence_around_a_sound_is_no_part_of_it():
    sound = np.concatenate([np.zeros(500), [0.001, 0.5, -0.25, 0.5, 0.002], np.zeros(900)])
    np.testing.assert_array_equal(trimmed(sound), [0.5, -0.25, 0.5])
    assert len(trimmed(np.zeros(9))) == 0
    found = fitted(sound, 16, "a.wav")
    assert found.shape == (samples(16),)
    np.testing.assert_array_equal(found[:4], [1, -0.5, 1, 0])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "expected a WAV file of whole numbers"),
        (b"ID3 an mp3", "expected a WAV file of whole numbers"),
        (wav(tone(440))[:30], "expected a WAV file of whole numbers"),
        (wav(tone(440)).replace(b"fmt \x10\0\0\0\x01", b"fmt \x10\0\0\0\x03"), "expected a WAV file of whole numbers"),
        (wav(np.zeros(0)), "got a file without samples"),
        (wav(np.zeros(4000)), "got silence"),
        (wav(1e-3 * tone(440)), "got silence"),
        (wav(tone(440, rate=4000), rate=4000), "expected 8000 to 192000 samples a second, got 4000"),
        (wav(np.zeros(61 * 8000), rate=8000, width=1), "expected a sound of at most 60 s"),
        (
            wav(tone(440, seconds=0.4)),
            r"at most 0\.17 s .* data\.resolution = 16 frames, got 0\.40 s; cut the file, or",
        ),
    ],
)
def test_what_is_no_sound_for_a_picture_is_named_in_one_line(tmp_path: Path, content: bytes, message: str):
    write_words(tmp_path / "words", 2)
    (tmp_path / "words" / "001.wav").write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        prepare(config(tmp_path / "words"), tmp_path / "out")
    assert "words: 001.wav" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_a_header_that_claims_more_is_no_more(tmp_path: Path):
    content = bytearray(wav(tone(440, seconds=0.1)))
    content[40:44] = struct.pack("<I", 2**31)
    assert len(read_wav(bytes(content), "a.wav")) == 2205


def test_recordings_become_pictures_of_their_sounds_with_their_words(tmp_path: Path):
    write_words(tmp_path / "words", 30)
    manifest = prepare(config(tmp_path / "words", test=0.1), tmp_path / "out")
    data, test = ImageData.open(tmp_path / "out"), ImageData.open(tmp_path / "out" / "test")
    assert (data.images.shape, test.images.shape) == ((27, 1, 16, 16), (3, 1, 16, 16))
    assert manifest["sound"] == described(16)
    words, captions = data.words, data.captions
    assert words is not None
    assert captions is not None
    assert words.vocabulary == tuple(sorted(WORDS))
    # The brightest band says the word.
    bands = [15 - int(image[0].astype(int).sum(1).argmax()) for image in data.images]
    by_word = {word: {b for b, row in zip(bands, captions, strict=True) if words.decode(row) == word} for word in WORDS}
    assert max(by_word["low"]) < min(by_word["middle"])
    assert max(by_word["middle"]) < min(by_word["high"])
    known = to_pictures(torch.from_numpy(fitted(read_wav((tmp_path / "words/000.wav").read_bytes(), ""), 16, ""))[None])
    assert any(np.array_equal(known[0].numpy(), image) for image in (*data.images, *test.images))
    write_zip(tmp_path / "words.zip", {p.name: p.read_bytes() for p in (tmp_path / "words").iterdir()})
    assert prepare(config(tmp_path / "words.zip", test=0.1), tmp_path / "zip") == manifest


def test_recordings_of_other_voices_are_the_test_images(tmp_path: Path):
    write_words(tmp_path / "words" / "train", 9)
    write_words(tmp_path / "words" / "test", 4, seed=1)
    prepare(config(tmp_path / "words", subfolder="train", test="own"), tmp_path / "out")
    data, test = ImageData.open(tmp_path / "out"), ImageData.open(tmp_path / "out" / "test")
    assert (len(data), len(test)) == (9, 4)
    assert data.words == test.words
    assert test.captions is not None
    assert data.manifest["words"] == test.manifest["words"]
    (tmp_path / "words" / "test" / "captions.jsonl").unlink()
    with pytest.raises(DataError, match="expected captions of training and of test images, or of neither"):
        prepare(config(tmp_path / "words", subfolder="train", test="own"), tmp_path / "other")


def test_recordings_in_folders_by_word_have_classes(tmp_path: Path):
    for word in ("no", "yes"):
        write_words(tmp_path / "words" / word, 3)
        (tmp_path / "words" / word / "captions.jsonl").unlink()
    manifest = prepare(config(tmp_path / "words"), tmp_path / "out")
    assert (manifest["class_names"], manifest["class_counts"]) == (["no", "yes"], [3, 3])


def test_a_recording_without_its_words_is_named(tmp_path: Path):
    write_words(tmp_path / "words", 4)
    lines = (tmp_path / "words/captions.jsonl").read_text().splitlines()
    (tmp_path / "words/captions.jsonl").write_text("\n".join(lines[:-1]))
    with pytest.raises(DataError, match=r"got none of 003\.wav"):
        prepare(config(tmp_path / "words"), tmp_path / "out")


def test_sounds_and_back_are_measured_on_the_test_images(tmp_path: Path):
    write_words(tmp_path / "words", 20, seconds=0.3)
    prepare(config(tmp_path / "words", resolution=64, test=0.2), tmp_path / "out")
    images, heard = resynthesis(tmp_path / "out")
    assert len(images) == len(heard.images) == 4
    again = heard.images[np.arange(4)]
    assert again.shape == images.images.shape
    error, size = np.abs(again.astype(float) - images.images).mean(), np.asarray(images.images).std()
    assert 0 < error < 0.15 * size
    np.testing.assert_array_equal(heard.images[2], again[2])
    assert heard.digest != images.digest


@pytest.mark.parametrize(
    ("fields", "key"),
    [
        ({"count": 0}, "count"),
        ({"path": "words"}, "count"),
        ({"path": "words", "count": 0, "seed": 3}, "seed"),
        ({"path": "words", "count": 0, "test": "own"}, "test"),
        ({"resolution": 8}, "resolution"),
        ({"resolution": 256}, "resolution"),
        ({"channels": 3}, "channels"),
        ({"subfolder": "voices"}, "subfolder"),
        ({"sha256": "0" * 64}, "sha256"),
        ({"background": "white"}, "background"),
        ({"resize": "adm"}, "resize"),
    ],
)
def test_wrong_settings_name_their_key(fields: dict, key: str):
    with pytest.raises(ConfigError, match=rf"^data\.{key}: "):
        config(**{"count": 4, **fields})


def test_without_the_extra_one_line_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(espeak, "PACKAGE", "no_such_package")
    with pytest.raises(DataError, match=r"espeak-ng, which is not installed: pip install .*\[speech\]") as caught:
        prepare(config(count=3), tmp_path / "out")
    assert "\n" not in str(caught.value)


needs_espeak = pytest.mark.skipif(library() is None, reason="espeakng-loader is not installed (the extra 'speech')")


@needs_espeak
def test_words_are_spoken_from_the_seed_alone(tmp_path: Path):
    given = config(count=60, resolution=80, test="own")
    made = {name: prepare(replace(given, **more), tmp_path / name) for name, more in
            {"one": {}, "two": {}, "other": {"seed": 1}}.items()}  # fmt: skip
    assert made["one"] == made["two"] != made["other"]
    assert (tmp_path / "one/images.npy").read_bytes() == (tmp_path / "two/images.npy").read_bytes()
    data, test = ImageData.open(tmp_path / "one"), ImageData.open(tmp_path / "one/test")
    assert (len(data), len(test)) == (60, 6)
    assert data.words is not None
    assert set(data.words.vocabulary) <= set(SPOKEN)
    lit = (data.images > 0).mean((1, 2, 3))
    assert (lit > 0.05).all()
    assert (lit < 0.9).all()


@needs_espeak
def test_every_voice_speaks_every_word_within_the_workloads_pictures():
    """All words and variants at the lowest rate: none is longer than 80 frames, and no two words are one sound."""
    voices = [f"{ACCENTS[k % 3]}+{voice}" for part in VOICES.values() for k, voice in enumerate(part)]
    words = [Utterance(word, voice, RATES[0], 50) for voice in voices for word in SPOKEN]
    sounds = [fitted(sound / 2.0**15, 80, str(one)) for one, sound in zip(words, spoken(words, 0, RATE), strict=True)]
    assert len({sound.tobytes() for sound in sounds}) == len(words)


@needs_espeak
def test_a_voice_that_is_not_there_is_named():
    with pytest.raises(DataError, match=r"expected espeak-ng to have the voice xx\+m1"):
        list(spoken([Utterance("one", "xx+m1", 150, 50)], 0, RATE))


def test_test_voices_are_not_trained_on():
    assert not set(VOICES["train"]) & set(VOICES["test"])
