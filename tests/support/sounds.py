"""Sounds with known spectra, and folders of WAV files of them."""

import io
import json
import wave
from pathlib import Path

import numpy as np

from cmcore.data.mel import RATE

WORDS = {"low": 300.0, "middle": 900.0, "high": 2700.0}  # Hz


def tone(hertz: float, seconds: float = 0.3, rate: int = RATE) -> np.ndarray:
    """A sine of amplitude 0.5 that swells and fades, float64 (n,)."""
    time = np.arange(round(seconds * rate)) / rate
    return 0.5 * np.sin(2 * np.pi * hertz * time) * np.sin(np.pi * time / seconds)


def wav(sound: np.ndarray, rate: int = RATE, width: int = 2, channels: int = 1) -> bytes:
    """A WAV file of whole numbers of `width` bytes, the same in all channels."""
    whole = np.round(sound * (2 ** (8 * width - 1) - 1)).astype("<i8").repeat(channels)
    data = (whole + 128).astype(np.uint8).tobytes() if width == 1 else b"".join(
        int(value).to_bytes(width, "little", signed=True) for value in whole
    )  # fmt: skip
    out = io.BytesIO()
    with wave.open(out, "wb") as file:
        file.setparams((channels, width, rate, 0, "NONE", ""))
        file.writeframes(data)
    return out.getvalue()


def write_words(folder: Path, count: int, *, seconds: float = 0.1, seed: int = 0) -> None:
    """So many files, each a tone near that of its word, and their captions."""
    folder.mkdir(parents=True, exist_ok=True)
    rng, lines = np.random.default_rng(seed), []
    for k in range(count):
        word = list(WORDS)[k % len(WORDS)]
        name = f"{k:03d}.wav"
        (folder / name).write_bytes(wav(tone(WORDS[word] * rng.uniform(0.95, 1.05), seconds)))
        lines.append(json.dumps({"file_name": name, "text": word}))
    (folder / "captions.jsonl").write_text("\n".join(lines))
