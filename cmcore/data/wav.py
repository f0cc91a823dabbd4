"""Sounds in WAV files of whole numbers (PCM)."""

import io
import math
import wave

import numpy as np

from cmcore import limits
from cmcore.data.mel import RATE, samples, seconds
from cmcore.errors import DataError, reason

RATES = (8_000, 192_000)  # samples a second that are read
SILENT = 1e-3  # peak up to which a recording is silence: 60 dB below full scale
EDGE = 1e-2  # of the peak, below which a sound has not begun or has ended


def read_wav(content: bytes, name: str) -> np.ndarray:
    """The sound in a file, float64 (n,) in [-1, 1] at RATE samples a second; several channels are averaged.

    Other rates are resampled by a polyphase filter. `name` is for errors.

    Raises:
        DataError: it is no WAV file of whole numbers, or of a rate beyond RATES.
    """
    try:
        with wave.open(io.BytesIO(content)) as file:
            channels, width, rate, count = file.getparams()[:4]
            data = file.readframes(count)
    except (wave.Error, EOFError, ValueError, OSError) as error:
        raise DataError(f"{name}: expected a WAV file of whole numbers (PCM), got: {reason(error)}") from error
    if not RATES[0] <= rate <= RATES[1]:
        raise DataError(f"{name}: expected {RATES[0]} to {RATES[1]} samples a second, got {rate}")
    if width not in (1, 2, 3, 4) or channels < 1:
        raise DataError(f"{name}: expected samples of 8, 16, 24 or 32 bits, got {8 * width}")
    if len(data) > limits.SOUND_SECONDS * rate * width * channels:
        raise DataError(f"{name}: expected a sound of at most {limits.SOUND_SECONDS} s; cut the file into words")
    sound = _numbers(data[: len(data) // (width * channels) * width * channels], width)
    sound = sound.reshape(-1, channels).mean(1)
    if rate == RATE:
        return sound
    try:
        from scipy.signal import resample_poly
    except ImportError as error:
        raise DataError(f"{name}: expected {RATE} samples a second, as scipy is not installed, got {rate}") from error
    both = math.gcd(RATE, rate)
    return resample_poly(sound, RATE // both, rate // both) if len(sound) else sound


def _numbers(data: bytes, width: int) -> np.ndarray:
    """Samples of so many bytes as float64 in [-1, 1); those of one byte have no sign."""
    if width == 1:
        return np.frombuffer(data, np.uint8) / 128.0 - 1
    parts = np.frombuffer(data, np.uint8).reshape(-1, width)
    whole = np.zeros((len(parts), 4), np.uint8)
    whole[:, 4 - width :] = parts
    return whole.reshape(-1).view("<i4") / 2.0**31


def write_wav(sound: np.ndarray) -> bytes:
    """A WAV file of 16 bits with one sound, (n,) in [-1, 1]."""
    out = io.BytesIO()
    with wave.open(out, "wb") as file:
        file.setparams((1, 2, RATE, 0, "NONE", ""))
        file.writeframes((np.clip(sound, -1, 1) * 32767).round().astype("<i2").tobytes())
    return out.getvalue()


def trimmed(sound: np.ndarray) -> np.ndarray:
    """The sound without the silence before and after it; nothing of silence."""
    loud = np.flatnonzero(np.abs(sound) > EDGE * np.abs(sound).max(initial=0.0))
    return sound[loud[0] : loud[-1] + 1] if len(loud) else sound[:0]


def fitted(sound: np.ndarray, side: int, name: str) -> np.ndarray:
    """The sound for a picture: without silence around it, of peak 1, with silence after it up to samples(side).

    Raises:
        DataError: there is none, it is silent, or it lasts longer.
    """
    peak = float(np.abs(sound).max(initial=0.0))
    if not len(sound):
        raise DataError(f"{name}: expected a sound, got a file without samples")
    if peak <= SILENT:
        raise DataError(f"{name}: expected a sound, got silence (a peak of {peak:.1g} of full scale)")
    heard = trimmed(sound)
    if len(heard) > samples(side):
        raise DataError(
            f"{name}: expected a sound of at most {seconds(side):.2f} s without the silence around it, which is "
            f"data.resolution = {side} frames, got {len(heard) / RATE:.2f} s; cut the file, or raise data.resolution"
        )
    return np.pad(heard / peak, (0, samples(side) - len(heard)))
