"""Means and standard deviations of a data set for its manifest, accumulated block by block."""

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np

from cmcore.data.latent_space import FINAL_STD, normalisation

NAMES = ("mean", "std", "channel_mean", "channel_std")


class Statistics(Protocol):
    """An accumulator, given every block once."""

    def add(self, block: np.ndarray) -> None: ...

    def result(self) -> dict[str, Any]: ...


class Pixels:
    """Histograms of the values of each channel, int64 (C, 256), which give exact moments."""

    def __init__(self, channels: int) -> None:
        self.counts = np.zeros((channels, 256), np.int64)

    def add(self, block: np.ndarray) -> None:
        for counts, pixels in zip(self.counts, block.swapaxes(0, 1), strict=True):
            counts += np.bincount(pixels.ravel(), minlength=256)

    def result(self) -> dict[str, Any]:
        return statistics(self.counts)


class Latents:
    """Means and deviations of normalised latents over images, pixels and the posterior: about 0 and FINAL_STD.

    Without constants of the normalisation they are those of the latents themselves: exactly 0 and FINAL_STD.
    """

    def __init__(self, channels: int, constants: Mapping[str, Any] | None) -> None:
        self.count, self._constants = 0, constants
        self.sum, self.squares = np.zeros((2, channels))

    def add(self, block: np.ndarray) -> None:
        mean, std = np.split(block.astype(np.float64), 2, axis=1)
        self.count += mean[:, 0].size
        self.sum += mean.sum((0, 2, 3))
        self.squares += (mean**2 + std**2).sum((0, 2, 3))

    def result(self) -> dict[str, Any]:
        mean = self.sum / self.count
        variance = self.squares / self.count - mean**2
        used = self._constants or normalisation(mean.tolist(), np.sqrt(variance).tolist())
        scale = FINAL_STD / np.array(used["raw_std"])
        mean, variance = (mean - np.array(used["raw_mean"])) * scale, variance * scale**2
        total = float(np.sqrt((variance + mean**2).mean() - mean.mean() ** 2))
        found = _named(float(mean.mean()), total, mean.tolist(), np.sqrt(variance).tolist())
        return {key: used[key] for key in normalisation()} | found


def statistics(histogram: np.ndarray) -> dict[str, Any]:
    """Mean and standard deviation over all pixels and per channel, in [-1, 1], from counts of values (C, 256)."""
    values = np.arange(256) / 127.5 - 1

    def moments(counts: np.ndarray) -> tuple[float, float]:
        weights = counts / counts.sum()
        mean = float(weights @ values)
        return mean, float(np.sqrt(weights @ (values - mean) ** 2))

    channels = [moments(counts) for counts in histogram]
    return _named(*moments(histogram.sum(0)), [mean for mean, _ in channels], [std for _, std in channels])


def _named(*values: Any) -> dict[str, Any]:
    return dict(zip(NAMES, values, strict=True))
