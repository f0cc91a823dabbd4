"""Records of every metric of a set of samples, from one pass over the images."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from cmcore.evaluate.classifier import as_read, right_rows
from cmcore.evaluate.collect import Part, collect
from cmcore.evaluate.features import FeatureExtractor
from cmcore.evaluate.frechet import frechet, frechet_infinity
from cmcore.evaluate.kernel import kid
from cmcore.evaluate.manifold import manifold, neighbour_distances
from cmcore.evaluate.moments import Moments
from cmcore.evaluate.nearest import memorised, nearest_distance
from cmcore.evaluate.records import (
    INCEPTION_DIGEST,
    NO_EXTRACTOR,
    Measured,
    MetricRecord,
    Provenance,
    Source,
    over_ranges,
)
from cmcore.evaluate.score import split_score
from cmcore.evaluate.settings import EvalConfig

MORE = ("density", "coverage", "authenticity")  # beside precision and recall


@dataclass(frozen=True)
class Reference:
    """The real images in the features of one extractor."""

    extractor: FeatureExtractor
    moments: Moments
    features: Tensor | None  # (N, D) float32, of at most `eval.kept` images; None: only moments are known
    digest: str  # of the images, or of the file of their moments
    absent: str = ""  # for a caption: the metrics that lack their features, and the reason
    test: Moments | None = None  # of the test images, which no run is trained on; None: there are none
    test_digest: str = ""  # of the test images
    reads: bool = False  # whether the extractor reads captions, instead of naming classes
    _distances: dict[int, Tensor] = field(default_factory=dict, repr=False, compare=False)

    def distances(self, k: int, device: torch.device | str = "cpu") -> Tensor:
        """`neighbour_distances` of the features, cached."""
        if k not in self._distances:
            assert self.features is not None
            self._distances[k] = neighbour_distances(self.features, k, device)
        return self._distances[k]


def evaluate_samples(
    batches: Iterable[Tensor],
    references: Sequence[Reference],
    source: Source,
    config: EvalConfig,
    device: torch.device | str = "cpu",
    *,
    every: bool = False,
    told: Callable[[Sequence[int]], Tensor] | None = None,
) -> list[MetricRecord]:
    """Measure uint8 images, given as batches (B, C, H, W), against every reference, in one pass over the images.

    `every` and `told` are as for `measure`.
    """
    extractors = [reference.extractor for reference in references]
    parts = collect(batches, extractors, shard=config.shard, keep=config.kept, device=device)
    return measure([parts], references, source, config, device=device, every=every, told=told)


def measure(
    ranges: Sequence[Sequence[Part]],
    references: Sequence[Reference],
    source: Source,
    config: EvalConfig,
    firsts: Sequence[int] = (0,),
    device: torch.device | str = "cpu",
    *,
    every: bool = False,
    told: Callable[[Sequence[int]], Tensor] | None = None,
) -> list[MetricRecord]:
    """Metrics of one or several ranges of samples.

    Args:
        ranges: for every range, the part under each reference's extractor.
        references: the real images.
        source: of the samples.
        config: the metrics' settings.
        firsts: the number of each range's first sample.
        device: device of the distances between many features.
        every: measure also the distance of infinitely many samples and that from the test images, density, coverage and
            authenticity.
        told: the captions of samples by their numbers, rows of words (B, L); None: they have none.

    Returns:
        A record for every metric; over several ranges it holds the value of each.
    """
    # The spread over ranges replaces the bootstrap within one.
    config = config if len(ranges) == 1 else replace(config, bootstrap=0)
    records: list[MetricRecord] = []
    for index, reference in enumerate(references):
        each = [
            _measure_range(parts[index], reference, source, config, device, every)
            + _read(parts[index], reference, source, told, first)
            for parts, first in zip(ranges, firsts, strict=True)
        ]
        records += each[0] if len(each) == 1 else [over_ranges(same, firsts) for same in zip(*each, strict=True)]
    return records


def _measure_range(
    part: Part, reference: Reference, source: Source, config: EvalConfig, device: torch.device | str, every: bool
) -> list[MetricRecord]:
    extractor, features = reference.extractor, part.features
    official = extractor.digest.startswith(INCEPTION_DIGEST)
    bootstrap, fd = config.bootstrap, "fid" if official else "fd"
    added: dict[str, Measured] = {}
    values = {fd: frechet(part.moments, features, reference.moments, bootstrap, config.seed)}
    if reference.features is not None:
        values["kid"] = kid(
            features, reference.features, subsets=config.kid_subsets, size=config.kid_size, seed=config.seed,
            fidelity=extractor.fidelity, device=device,
        )  # fmt: skip
        k = config.neighbours
        distances = reference.distances(k, device)
        found = manifold(reference.features, features, k, distances=distances, device=device)._asdict()
        values |= {name: found[name] for name in ("precision", "recall")}
        added = {name: found[name] for name in MORE}
    logits = extractor.logits(features)
    if logits is not None and not reference.reads:
        values["score"] = split_score(logits, splits=config.score_splits, seed=config.seed, fidelity=extractor.fidelity)
    known = 0 if reference.features is None else len(reference.features)
    provenance = Provenance(
        **vars(source),
        extractor=extractor.name,
        extractor_digest=extractor.digest,
        reference_digest=reference.digest,
        reference_count=reference.moments.count,
        samples=part.moments.count,
    )
    # The distance is of all images; the others are of the features that were kept.
    kept = replace(provenance, samples=len(features))
    capped = replace(kept, reference_count=known or provenance.reference_count)
    made = [record(name, value, provenance if name == fd else capped) for name, value in values.items()]
    if every:
        made.append(record(f"{fd}_infinity", frechet_infinity(features, reference.moments, config.seed), kept))
        made += [record(name, value, capped) for name, value in added.items()]
    if every and reference.test is not None:
        value = frechet(part.moments, features, reference.test, bootstrap, config.seed)
        against = {"reference_digest": reference.test_digest, "reference_count": reference.test.count}
        made.append(record(f"{fd}_test", value, replace(provenance, **against)))
    return made


def _read(
    part: Part, reference: Reference, source: Source, told: Callable[[Sequence[int]], Tensor] | None, first: int
) -> list[MetricRecord]:
    """The share of a range of samples from number `first` on whose whole caption the reader finds in the picture.

    Its spread is the standard error of a share.
    """
    if told is None or not reference.reads:
        return []
    count = len(part.features)
    logits = reference.extractor.logits(part.features)
    assert logits is not None, "a reader has a class layer"
    captions = told(range(first, first + count)).cpu().numpy()
    share = float(right_rows(logits, torch.from_numpy(as_read(captions))).double().mean())
    spread = math.sqrt(share * (1 - share) / count)
    extractor = reference.extractor
    provenance = Provenance(
        **vars(source),
        extractor=extractor.name,
        extractor_digest=extractor.digest,
        reference_digest=reference.digest,
        reference_count=reference.moments.count,
        samples=count,
    )
    return [record("captions", Measured(share, spread, "images"), provenance)]


def copies(squared: Tensor, pixels: int, digest: str, count: int, source: Source) -> list[MetricRecord]:
    """Records of how near samples are to training images, from `Nearest.squared` of some of them.

    Args:
        squared: (B, 2).
        pixels: numbers in an image.
        digest: of the training images.
        count: their number.
        source: of the samples.
    """
    provenance = Provenance(
        **vars(source),
        extractor=NO_EXTRACTOR,
        extractor_digest=NO_EXTRACTOR,
        reference_digest=digest,
        reference_count=count,
        samples=len(squared),
    )
    values = {"memorised": memorised(squared), "nearest": nearest_distance(squared, pixels)}
    return [record(name, value, provenance) for name, value in values.items()]


def record(metric: str, measured: Measured, provenance: Provenance) -> MetricRecord:
    """A measured value with its provenance."""
    return MetricRecord(metric=metric, provenance=provenance, **measured._asdict())
