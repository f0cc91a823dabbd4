"""Words spoken by espeak-ng (the extra `speech`), in a process of its own: the library keeps state from word to word.

Sounds are a function of the seed: the library's generator is seeded once, and words are spoken in their order.
"""

import ctypes
import importlib.util
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from cmcore.data.sources.pool import ordered
from cmcore.errors import DataError, reason

PACKAGE, LIBRARY = "espeakng_loader", "libespeak-ng.so"
_SYNCHRONOUS, _CHARACTERS, _UTF8, _RATE, _PITCH = 2, 1, 1, 1, 3  # of espeak-ng's speak_lib.h
_AT_ONCE = 256  # words
_CALLBACK = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)


class Utterance(NamedTuple):
    """A word, and how it is spoken."""

    word: str
    voice: str  # language and variant, such as en-us+f2
    rate: int  # words a minute
    pitch: int  # 0 to 100


def library() -> Path | None:
    """The file of the library; None where the extra is not installed."""
    found = importlib.util.find_spec(PACKAGE)
    return None if found is None or found.origin is None else Path(found.origin).with_name(LIBRARY)


def spoken(utterances: Sequence[Utterance], seed: int, rate: int) -> Iterator[np.ndarray]:
    """The sounds int16 (n,) of words, in their order.

    Args:
        utterances: the words.
        seed: of the library.
        rate: samples a second that the library is expected to speak with.

    Raises:
        DataError: the extra is not installed, or the library has another rate, or lacks a voice.
    """
    file = library()
    if file is None:
        raise DataError(
            "data.source: speech without data.path is spoken by espeak-ng, which is not installed: "
            "pip install -c constraints.txt -e '.[speech]'; or name a folder of WAV files in data.path"
        )
    parts = [utterances[start : start + _AT_ONCE] for start in range(0, len(utterances), _AT_ONCE)]
    for sounds in ordered(Speaker(file, seed, rate), parts, 1, apart=True):
        yield from sounds


class Speaker:
    """espeak-ng in this process; it starts with the first words, as it cannot be sent to another process."""

    def __init__(self, file: Path, seed: int, rate: int) -> None:
        self._file, self._seed, self._rate = file, seed, rate
        self._library: Any = None
        self._heard: list[np.ndarray] = []

    def __call__(self, utterances: Sequence[Utterance]) -> list[np.ndarray]:
        """The sounds of words, int16 (n,) each."""
        if self._library is None:
            self._start()
        return [self._say(one) for one in utterances]

    def _start(self) -> None:
        try:
            self._library = ctypes.CDLL(str(self._file))
        except OSError as error:
            raise DataError(f"{self._file}: cannot be loaded ({reason(error)})") from error
        rate = self._library.espeak_Initialize(_SYNCHRONOUS, 0, str(self._file.parent).encode(), 0)
        if rate != self._rate:
            raise DataError(f"{self._file}: expected espeak-ng with {self._rate} samples a second, got {rate}")
        self._library.espeak_ng_SetRandSeed(ctypes.c_long(self._seed))
        self._library.espeak_Synth.argtypes = (
            ctypes.c_char_p, ctypes.c_size_t, ctypes.c_uint, ctypes.c_int, ctypes.c_uint, ctypes.c_uint,
            ctypes.c_void_p, ctypes.c_void_p,
        )  # fmt: skip
        self._callback = _CALLBACK(self._hear)  # as long as the library may call it
        self._library.espeak_SetSynthCallback(self._callback)

    def _hear(self, samples: Any, count: int, _events: Any) -> int:
        if samples and count > 0:
            self._heard.append(np.ctypeslib.as_array(samples, (count,)).copy())
        return 0  # go on

    def _say(self, one: Utterance) -> np.ndarray:
        self._heard.clear()
        text = one.word.encode()
        if self._library.espeak_SetVoiceByName(one.voice.encode()):
            raise DataError(f"{self._file}: expected espeak-ng to have the voice {one.voice}")
        for parameter, value in ((_RATE, one.rate), (_PITCH, one.pitch)):
            self._library.espeak_SetParameter(parameter, value, 0)
        failed = self._library.espeak_Synth(text, len(text) + 1, 0, _CHARACTERS, 0, _UTF8, None, None)
        if failed or self._library.espeak_Synchronize() or not self._heard:
            raise DataError(f"{self._file}: espeak-ng did not speak {one.word!r} as {one.voice}")
        return np.concatenate(self._heard)
