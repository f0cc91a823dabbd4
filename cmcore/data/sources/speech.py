"""Spoken words as pictures of their mel frames: recordings in WAV files, or words that espeak-ng speaks."""

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch

from cmcore.data.mel import RATE, SOUND, described, to_pictures
from cmcore.data.settings import SPOKEN, DataConfig
from cmcore.data.sources.espeak import Utterance, spoken
from cmcore.data.sources.listing import list_files
from cmcore.data.sources.source import Block, Source
from cmcore.data.wav import fitted, read_wav
from cmcore.rng import generator

ACCENTS = ("en-us", "en", "en-gb-scotland")  # American, British, Scottish
VOICES = {  # espeak-ng's variants; test images are of voices that are not trained on
    "train": ("m1", "m2", "m3", "m4", "m6", "m7", "f1", "f2", "f3", "f5"),
    "test": ("m5", "m8", "f4"),
}
RATES, PITCHES = (115, 160), (30, 70)  # words a minute; of 0 to 100
TEST = 10  # words to train on for each test word
SOME = 128  # sounds to a block


def speech(config: DataConfig) -> Source:
    """The recordings at the config's place, else `config.count` words spoken in training or test voices.

    Raises:
        DataError: a recording is none, silent, too long or without its words, or espeak-ng is not installed.
    """
    return _spoken(config) if config.spoken else _recordings(config)


def _recordings(config: DataConfig) -> Source:
    listing = list_files(Path(config.path), config.subfolder)

    def sounds() -> Iterator[tuple[int, np.ndarray]]:
        for row, name, content in listing.files():
            yield row, fitted(read_wav(content, name), config.resolution, name)

    return _source(config, listing.labels, listing.class_names, listing.captions, sounds)


def _spoken(config: DataConfig) -> Source:
    part = config.subfolder or "train"
    utterances = _utterances(config.seed, part, config.count if part == "train" else -(-config.count // TEST))

    def sounds() -> Iterator[tuple[int, np.ndarray]]:
        for row, (one, sound) in enumerate(zip(utterances, spoken(utterances, config.seed, RATE), strict=True)):
            yield row, fitted(sound / 2.0**15, config.resolution, f"{one.word!r} as {one.voice}")

    return _source(config, np.zeros(len(utterances), np.int64), (), tuple(one.word for one in utterances), sounds)


def _utterances(seed: int, part: str, count: int) -> list[Utterance]:
    """Words, accents, voices, rates and pitches, all alike and independent of one another."""

    def drawn(low: int, high: int, what: str) -> list[int]:
        return torch.randint(low, high + 1, (count,), generator=generator("speech", seed, part, what)).tolist()

    voices = VOICES[part]
    words = (SPOKEN[k] for k in drawn(0, len(SPOKEN) - 1, "word"))
    accents = (ACCENTS[k] for k in drawn(0, len(ACCENTS) - 1, "accent"))
    variants = (voices[k] for k in drawn(0, len(voices) - 1, "voice"))
    names = (f"{accent}+{variant}" for accent, variant in zip(accents, variants, strict=True))
    return list(map(Utterance, words, names, drawn(*RATES, "rate"), drawn(*PITCHES, "pitch")))


def _source(
    config: DataConfig,
    labels: np.ndarray,
    class_names: tuple[str, ...],
    captions: tuple[str, ...],
    sounds: Callable[[], Iterator[tuple[int, np.ndarray]]],
) -> Source:
    """The pictures of sounds (samples(R),) with their rows."""

    def blocks() -> Iterator[Block]:
        each = sounds()
        while some := list(itertools.islice(each, SOME)):
            rows, heard = zip(*some, strict=True)
            yield Block(rows, to_pictures(torch.from_numpy(np.stack(heard))).numpy())

    return Source(labels, class_names, blocks, captions=captions, about={SOUND: described(config.resolution)})
