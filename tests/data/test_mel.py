"""The mel codec against closed forms: the scale, the bands, pure tones there and back, and silence."""

import numpy as np
import pytest
import torch
from sounds import tone

from cmcore.data import mel
from cmcore.data.mel import RATE, TOP, WINDOW, filters, samples, to_hertz, to_mel, to_pictures, to_sounds

SIDE = 64
FREQUENCIES = torch.arange(WINDOW // 2 + 1, dtype=torch.float64) * RATE / WINDOW


def centres(side: int = SIDE) -> np.ndarray:
    """The frequencies of the bands in Hz, from the lowest."""
    top = to_mel(torch.tensor(TOP, dtype=torch.float64))
    return to_hertz(torch.linspace(0, float(top), side + 2, dtype=torch.float64))[1:-1].numpy()


def padded(*sounds: np.ndarray, side: int = SIDE) -> torch.Tensor:
    return torch.from_numpy(np.stack([np.pad(s, (0, samples(side) - len(s))) for s in sounds]))


def loudest(sound: np.ndarray) -> float:
    """The frequency of the largest Fourier coefficient."""
    return float(np.abs(np.fft.rfft(sound * np.hanning(len(sound)))).argmax() * RATE / len(sound))


def voice() -> np.ndarray:
    """Harmonics of a gliding pitch under two formants, as of a vowel, float64 of half a second."""
    time = np.arange(RATE // 2) / RATE
    phase = 2 * np.pi * np.cumsum(120 + 40 * time) / RATE
    sound = np.zeros_like(time)
    for k in range(1, 40):
        f = 140 * k
        gain = np.exp(-(((f - 700) / 300) ** 2)) + 0.4 * np.exp(-(((f - 1800) / 400) ** 2)) + 0.01
        sound += gain * np.sin(k * phase)
    sound *= np.sin(np.pi * time / 0.5)
    return sound / np.abs(sound).max()


def test_the_mel_scale_is_slaneys():
    """By hand: 15 mel at 1 kHz, 27 more for each factor of 6.4; and back."""
    hertz = torch.tensor([0.0, 200.0, 1000.0, 6400.0, 1000 * 6.4**0.5], dtype=torch.float64)
    torch.testing.assert_close(to_mel(hertz), torch.tensor([0.0, 3.0, 15.0, 42.0, 28.5], dtype=torch.float64))
    torch.testing.assert_close(to_hertz(to_mel(FREQUENCIES)), FREQUENCIES)


@pytest.mark.parametrize("side", [16, 80, 128])
def test_bands_share_every_frequency_between_them(side: int):
    """Triangles of height 1 add up to 1 between the first and the last centre; every band has some frequency."""
    top = to_mel(torch.tensor(TOP, dtype=torch.float64))
    corners = to_hertz(torch.linspace(0, float(top), side + 2, dtype=torch.float64))
    heights = filters(side) * (corners[2:] - corners[:-2]).unsqueeze(1) / 2
    inside = (corners[1] <= FREQUENCIES) & (corners[-2] >= FREQUENCIES)
    torch.testing.assert_close(heights.sum(0)[inside], torch.ones(int(inside.sum()), dtype=torch.float64))
    assert (filters(side).sum(1) > 0).all()
    assert not filters(side)[:, FREQUENCIES > TOP].any()


@pytest.mark.parametrize("hertz", [250.0, 440.0, 1500.0, 4000.0])
def test_a_tone_lies_in_its_band_and_comes_back_at_its_frequency(hertz: float):
    picture = to_pictures(padded(2 * tone(hertz)))
    assert (picture.dtype, picture.shape) == (torch.uint8, (1, 1, SIDE, SIDE))
    middle = picture[0, 0, :, 10].flip(0).numpy()  # from the lowest band on, while it sounds
    width = np.diff(centres(), append=TOP).max() if hertz > 1000 else np.diff(centres())[0]
    assert abs(centres()[middle.argmax()] - hertz) <= width
    assert not picture[0, 0, :, 40:].any()  # it lasts 26 frames
    sound = to_sounds(picture)[0].numpy()
    assert sound.shape == (samples(SIDE),)
    assert loudest(sound) == pytest.approx(hertz, abs=width)
    assert np.abs(sound).max() > 0.3


def test_a_sound_of_a_picture_has_nearly_that_picture():
    """A voice: errors of a few of the 255 steps; the loudness and the picture of black are exact."""
    picture = to_pictures(padded(voice()))
    again = to_pictures(to_sounds(picture).double())
    error = (again.int() - picture.int()).abs().double().mean() / 255
    assert error < 0.02
    assert (picture.double() - picture.double().mean()).abs().mean() / 255 > 0.1  # there is something to miss


def test_iterations_bring_the_sound_nearer(monkeypatch: pytest.MonkeyPatch):
    picture = to_pictures(padded(voice()))

    def error(iterations: int) -> float:
        monkeypatch.setattr(mel, "ITERATIONS", iterations)
        return float((to_pictures(to_sounds(picture).double()).int() - picture.int()).abs().double().mean())

    assert error(32) < 0.5 * error(0)


def test_silence_is_black_and_black_is_silence():
    black = to_pictures(torch.zeros(1, samples(SIDE)))
    assert not black.any()
    assert not to_sounds(black).any()


def test_a_sound_does_not_depend_on_those_beside_it():
    pictures = to_pictures(padded(2 * tone(300), voice(), 2 * tone(1200)))
    assert torch.equal(to_sounds(pictures)[1:2], to_sounds(pictures[1:2]))
    assert torch.equal(to_sounds(pictures), to_sounds(pictures.clone()))


def test_loudness_is_logarithmic_between_its_ends():
    """A tenth of the amplitude is 20 of 70.5 dB, 72 of 255 steps, wherever it is not cut."""
    loud, soft = (to_pictures(padded(a * 2 * tone(440)))[0, 0].int() for a in (1.0, 0.1))
    both = (loud < 255) & (soft > 0)
    assert both.sum() > 100
    assert set((loud - soft)[both].unique().tolist()) <= {72, 73}


def test_the_codec_is_described_with_a_digest():
    one, other = mel.described(64), mel.described(80)
    assert one["digest"] != other["digest"]
    assert mel.described(64) == one
    assert mel.seconds(80) == pytest.approx(79 * 256 / 22050)
