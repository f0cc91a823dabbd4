"""Streaming collection of features: their moments, shard by shard, and the first of the features themselves."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from cmcore.evaluate.features import FeatureExtractor
from cmcore.evaluate.moments import Moments


class Span(NamedTuple):
    """The images `start` to `stop - 1`."""

    start: int
    stop: int


def spans(count: int, size: int, first: int = 0) -> list[Span]:
    """The images `first` to `first + count - 1` in spans of `size`, whichever process measures them."""
    return [Span(start, min(start + size, first + count)) for start in range(first, first + count, size)]


@dataclass(frozen=True)
class Part:
    """The features of some images under one extractor: their moments, and the first of them."""

    moments: Moments
    features: Tensor  # (K, D) float32 on the CPU, of the first K images


def joined(parts: Sequence[Part], keep: int) -> Part:
    """The union of parts in order. Moments are merged one by one, so the order decides the last bits."""
    features = torch.cat([part.features for part in parts])[:keep]
    return Part(Moments.total(part.moments for part in parts), features)


class Collector:
    """An accumulator of features. It holds those of one shard, and those to be kept."""

    def __init__(self, shard: int, keep: int, device: torch.device | str = "cpu") -> None:
        self._shard, self._keep, self._device = shard, keep, device
        self._open: list[Tensor] = []  # of the current shard
        self._kept: list[Tensor] = []
        self._total: Moments | None = None
        self.count = 0

    def add(self, features: Tensor) -> None:
        """Add the features (B, D) of the next images."""
        for piece in self._pieces(features):
            self._open.append(piece)
            if self.count < self._keep:
                self._kept.append(piece[: self._keep - self.count].cpu())
            self.count += len(piece)
            if self.count % self._shard == 0:
                self._close()

    def part(self) -> Part:
        """The moments of all features, and those that were kept.

        Raises:
            ValueError: there are none.
        """
        self._close()
        if self._total is None:
            raise ValueError("samples: expected at least one batch of images, got none")
        features = torch.cat(self._kept) if self._kept else torch.zeros(0, len(self._total.mean))
        return Part(self._total, features)

    def _pieces(self, features: Tensor) -> Iterator[Tensor]:
        """The features, split where a shard ends."""
        while len(features):
            room = self._shard - self.count % self._shard
            yield features[:room]
            features = features[room:]

    def _close(self) -> None:
        if self._open:
            moments = Moments.of(torch.cat(self._open), self._device)
            self._total = moments if self._total is None else self._total.merge(moments)
            self._open = []


def collect(
    batches: Iterable[Tensor], extractors: Sequence[FeatureExtractor], *, shard: int, keep: int,
    device: torch.device | str = "cpu",
) -> list[Part]:  # fmt: skip
    """The parts of uint8 images, given as batches (B, C, H, W), under every extractor, in one pass over the images.

    Args:
        batches: the images.
        extractors: the extractors.
        shard: number of images whose moments are computed together.
        keep: most features to keep.
        device: device of the computation of moments.

    Returns:
        A part for every extractor.
    """
    collectors = [Collector(shard, keep, device) for _ in extractors]
    for batch in batches:
        for extractor, collector in zip(extractors, collectors, strict=True):
            collector.add(extractor(batch))
    return [collector.part() for collector in collectors]
