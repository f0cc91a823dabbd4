"""The mel codec: sounds as pictures of their log-mel frames, and sounds of pictures by Griffin and Lim's algorithm.

A picture of side R has R bands, the lowest in its last row, and R frames, HOP samples apart from left to right. Window,
step and bands are those of most vocoders of speech (HiFi-GAN, arXiv 2010.05646). Pictures are computed in float64, so
that rounding to bytes gives the same ones on all machines but for ties.
"""

import math
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cmcore.config import digest
from cmcore.data.images import ImageData
from cmcore.rng import generator

SOUND = "sound"  # of the manifest of a data set of sounds: the codec
RATE = 22_050  # samples a second
WINDOW, HOP = 1024, 256  # samples of a frame (Hann), and from one frame to the next
TOP = 8000.0  # Hz, where the highest band ends
LEAST, MOST = 3e-3, 10.0  # amplitudes of a band that are black and white, 70 dB; sounds have a peak of 1
ITERATIONS, MOMENTUM = 32, 0.99  # of Griffin and Lim, with the momentum of Perraudin et al. (2013)
_BATCH = 64  # pictures at once


def samples(side: int) -> int:
    """Samples of the sound of a picture: the first frame's centre is the first of them, the last frame's the end."""
    return (side - 1) * HOP


def seconds(side: int) -> float:
    """Length of the sound of a picture."""
    return samples(side) / RATE


def described(side: int) -> dict[str, Any]:
    """The codec of pictures of a side, and its digest, for the manifest of a data set."""
    facts = {
        "rate": RATE, "window": WINDOW, "hop": HOP, "bands": side, "frames": side, "top": TOP, "least": LEAST,
        "most": MOST, "iterations": ITERATIONS, "momentum": MOMENTUM,
    }  # fmt: skip
    return {**facts, "digest": digest(facts)}


def to_mel(hertz: Tensor) -> Tensor:
    """Slaney's mel scale: linear up to 1 kHz (15 mel), logarithmic above (27 mel for each factor of 6.4)."""
    above = 15 + 27 * (hertz.clamp(min=1000) / 1000).log() / math.log(6.4)
    return torch.where(hertz < 1000, hertz * 3 / 200, above)


def to_hertz(mel: Tensor) -> Tensor:
    """The inverse of `to_mel`."""
    return torch.where(mel < 15, mel * 200 / 3, 1000 * ((mel - 15) * math.log(6.4) / 27).exp())


@lru_cache(maxsize=4)
def filters(bands: int) -> Tensor:
    """Triangles over the frequencies of a frame, (bands, WINDOW / 2 + 1), with corners at equal steps of mel.

    Each has the area 1 over Hz, so that the amplitude of noise does not grow with the width of its band.
    """
    top = float(to_mel(torch.tensor(TOP, dtype=torch.float64)))
    corners = to_hertz(torch.linspace(0, top, bands + 2, dtype=torch.float64))
    hertz = torch.arange(WINDOW // 2 + 1, dtype=torch.float64) * (RATE / WINDOW)
    low, centre, high = (corners[k : bands + k, None] for k in range(3))
    rising, falling = (hertz - low) / (centre - low), (high - hertz) / (high - centre)
    return torch.minimum(rising, falling).clamp(min=0) * 2 / (high - low)


@lru_cache(maxsize=4)
def _inverse(bands: int) -> Tensor:
    return torch.linalg.pinv(filters(bands))


def to_pictures(sounds: Tensor) -> Tensor:
    """Sounds (B, samples(R)) -> uint8 pictures (B, 1, R, R): logarithms of amplitudes, from LEAST to MOST."""
    frames = _spectrum(sounds.double())
    mel = filters(frames.shape[-1]) @ frames.abs()
    share = (mel.clamp(LEAST, MOST) / LEAST).log() / math.log(MOST / LEAST)
    return (share * 255).round().to(torch.uint8).flip(1).unsqueeze(1)


def to_sounds(pictures: Tensor) -> Tensor:
    """uint8 pictures (B, 1, R, R) -> sounds float32 (B, samples(R)) in [-1, 1].

    Amplitudes of the frequencies by the pseudo-inverse of the bands, phases by fast Griffin-Lim iterations. Black is
    silence. A sound is a function of its picture alone.
    """
    return torch.cat([_to_sounds(part) for part in pictures.cpu().split(_BATCH)])


def _to_sounds(pictures: Tensor) -> Tensor:
    share = pictures[:, 0].flip(1).float() / 255
    mel = torch.where(share > 0, LEAST * (share * math.log(MOST / LEAST)).exp(), 0.0)
    amplitude = (_inverse(mel.shape[-1]).float() @ mel).clamp(min=0)
    first = torch.rand(amplitude.shape[1:], generator=generator("griffin lim"))
    phase, before = torch.polar(torch.ones_like(amplitude), (2 * math.pi * first).expand_as(amplitude)), 0
    for _ in range(ITERATIONS):
        again = _spectrum(_wave(amplitude * phase))
        moved = again - MOMENTUM / (1 + MOMENTUM) * before
        phase, before = moved / moved.abs().clamp(min=1e-12), again
    return _wave(amplitude * phase).clamp(-1, 1)


def _spectrum(sounds: Tensor) -> Tensor:
    """Frames of sounds (B, samples(R)) by frequency, complex (B, WINDOW / 2 + 1, R)."""
    return torch.stft(sounds, WINDOW, HOP, window=_window(sounds.dtype), pad_mode="constant", return_complex=True)


def _wave(spectrum: Tensor) -> Tensor:
    """The sounds whose frames are nearest to given ones in squares."""
    return torch.istft(spectrum, WINDOW, HOP, window=_window(spectrum.real.dtype), length=samples(spectrum.shape[-1]))


def _window(kind: torch.dtype) -> Tensor:
    return torch.hann_window(WINDOW, dtype=kind)


class HeardImages:
    """Pictures of the sounds of pictures: an array-like of uint8 (N, 1, R, R) that computes on access."""

    def __init__(self, images: np.ndarray) -> None:
        self._images = images
        self.shape, self.ndim = images.shape, images.ndim

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, key: Any) -> np.ndarray:
        images = torch.from_numpy(np.array(self._images[key]))
        again = to_pictures(to_sounds(images if images.ndim == 4 else images[None])).numpy()
        return again if images.ndim == 4 else again[0]


class HeardData:
    """A data set of pictures of sounds, made sounds and pictures again."""

    def __init__(self, data: ImageData) -> None:
        self.images, self.captions = HeardImages(data.images), data.captions
        self.digest = digest([data.digest, described(data.shape[1])["digest"]])
