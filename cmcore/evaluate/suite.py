"""Records of every metric of a set of samples, from one pass over the images."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from cmcore.evaluate.collect import Part, collect
from cmcore.evaluate.features import FeatureExtractor
from cmcore.evaluate.frechet import frechet
from cmcore.evaluate.kernel import kid
from cmcore.evaluate.manifold import neighbour_radii, precision_recall
from cmcore.evaluate.moments import Moments
from cmcore.evaluate.records import INCEPTION_DIGEST, Measured, MetricRecord, Provenance, Source, over_ranges
from cmcore.evaluate.score import split_score
from cmcore.evaluate.settings import EvalConfig


@dataclass(frozen=True)
class Reference:
    """The real images in the features of one extractor."""

    extractor: FeatureExtractor
    moments: Moments
    features: Tensor | None  # (N, D) float32, of at most `eval.kept` images; None: only moments are known
    digest: str  # of the images, or of the file of their moments
    absent: str = ""  # for a caption: the metrics that lack their features, and the reason
    _radii: dict[int, Tensor] = field(default_factory=dict, repr=False, compare=False)

    def radii(self, k: int, device: torch.device | str = "cpu") -> Tensor:
        """`neighbour_radii` of the features, cached."""
        if k not in self._radii:
            assert self.features is not None
            self._radii[k] = neighbour_radii(self.features, k, device)
        return self._radii[k]


def evaluate_samples(
    batches: Iterable[Tensor],
    references: Sequence[Reference],
    source: Source,
    config: EvalConfig,
    device: torch.device | str = "cpu",
) -> list[MetricRecord]:
    """Measure uint8 images, given as batches (B, C, H, W), against every reference, in one pass over the images."""
    extractors = [reference.extractor for reference in references]
    parts = collect(batches, extractors, shard=config.shard, keep=config.kept, device=device)
    return measure([parts], references, source, config, device=device)


def measure(
    ranges: Sequence[Sequence[Part]],
    references: Sequence[Reference],
    source: Source,
    config: EvalConfig,
    firsts: Sequence[int] = (0,),
    device: torch.device | str = "cpu",
) -> list[MetricRecord]:
    """Every metric of one or several ranges of samples.

    Args:
        ranges: for every range, the part under each reference's extractor.
        references: the real images.
        source: of the samples.
        config: the metrics' settings.
        firsts: the number of each range's first sample.
        device: device of the distances between many features.

    Returns:
        A record for every metric; over several ranges it holds the value of each.
    """
    # The spread over ranges replaces the bootstrap within one.
    config = config if len(ranges) == 1 else replace(config, bootstrap=0)
    records: list[MetricRecord] = []
    for index, reference in enumerate(references):
        each = [_measure_range(parts[index], reference, source, config, device) for parts in ranges]
        records += each[0] if len(each) == 1 else [over_ranges(same, firsts) for same in zip(*each, strict=True)]
    return records


def _measure_range(
    part: Part, reference: Reference, source: Source, config: EvalConfig, device: torch.device | str
) -> list[MetricRecord]:
    extractor, features = reference.extractor, part.features
    official = extractor.digest.startswith(INCEPTION_DIGEST)
    bootstrap = config.bootstrap
    values = {"fid" if official else "fd": frechet(part.moments, features, reference.moments, bootstrap, config.seed)}
    if reference.features is not None:
        values["kid"] = kid(
            features, reference.features, subsets=config.kid_subsets, size=config.kid_size, seed=config.seed,
            fidelity=extractor.fidelity, device=device,
        )  # fmt: skip
        k = config.neighbours
        radii = reference.radii(k, device)
        values |= precision_recall(reference.features, features, k, real_radii=radii, device=device)._asdict()
    logits = extractor.logits(features)
    if logits is not None:
        values["score"] = split_score(logits, splits=config.score_splits, seed=config.seed, fidelity=extractor.fidelity)
    whole = ("fid", "fd")  # of all images; the others are of the features that were kept
    known = 0 if reference.features is None else len(reference.features)
    provenance = Provenance(
        **vars(source),
        extractor=extractor.name,
        extractor_digest=extractor.digest,
        reference_digest=reference.digest,
        reference_count=reference.moments.count,
        samples=part.moments.count,
    )
    capped = replace(provenance, samples=len(features), reference_count=known or provenance.reference_count)
    return [record(name, value, provenance if name in whole else capped) for name, value in values.items()]


def record(metric: str, measured: Measured, provenance: Provenance) -> MetricRecord:
    """A measured value with its provenance."""
    return MetricRecord(metric=metric, provenance=provenance, **measured._asdict())
