"""Samples that are sounds: as pictures of their mel frames, and played by the page."""

import base64
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from cmcore.data.mel import to_sounds
from cmcore.data.wav import trimmed, write_wav
from cmcore.report.captions import run_title
from cmcore.report.readers import Images, RunReport
from cmcore.report.strips import encoded, uri

MOST = 16  # sounds of a page: of a word about 30 kB, of noise up to 54 kB
ROOM = 450_000  # bytes of the page that they may take, unless one of each run takes more


@dataclass(frozen=True, kw_only=True)
class Sound:
    """A sample. `picture` and `source` are data URIs of a PNG file of the mel frames, and of a WAV file."""

    title: str
    label: str
    word: str  # that it was told; "" of an unconditional run
    picture: str
    source: str

    @property
    def alt(self) -> str:
        """What a reader who cannot see or hear it should know."""
        return f"{self.word or 'sound'}, {self.title}, {self.label}"


def sounds(runs: Sequence[RunReport]) -> tuple[Sound, ...]:
    """A row of sounds for every run with samples: one-step samples, or where there are none those with most steps.

    All runs say the same words from the same noise: the first samples with different words, as far as there is room.
    """
    shown = [run for run in runs if run.samples]
    rows = [_row(run, max(1, MOST // len(shown))) for run in shown]
    words = max(map(len, rows), default=0)
    while words > 1 and sum(len(one.source) for row in rows for one in row[:words]) > ROOM:
        words -= 1
    return tuple(one for row in rows for one in row[:words])


def _row(run: RunReport, most: int) -> list[Sound]:
    assert run.samples is not None
    label = next((name for name in run.samples if name.startswith("1 NFE")), [*run.samples][-1])
    images = run.samples[label]
    told = run.told or ("",) * len(images)
    first = {word: place for place, word in reversed([*enumerate(told)])} if run.told else {}
    places = sorted(first.values()) or [*range(len(images))]
    return [_sound(run, label, told[place], images[place : place + 1]) for place in places[:most]]


def _sound(run: RunReport, label: str, word: str, image: Images) -> Sound:
    wave = trimmed(to_sounds(torch.from_numpy(np.array(image)))[0].numpy())
    return Sound(
        title=run_title(run),
        label=label,
        word=word,
        picture=uri(encoded(image, "png")),
        source="data:audio/wav;base64," + base64.b64encode(write_wav(wave)).decode("ascii"),
    )
