"""The whole evaluation: reference features once per workload, then every set of samples in one pass."""

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from cmcore.config import digest
from cmcore.evaluate.baseline import gaussian_pixels
from cmcore.evaluate.classifier import train_classifier
from cmcore.evaluate.features import FeatureExtractor, NetworkExtractor, random_extractor
from cmcore.evaluate.frechet import frechet, frechet_distance
from cmcore.evaluate.kernel import kid
from cmcore.evaluate.manifold import precision_recall
from cmcore.evaluate.moments import Moments
from cmcore.evaluate.records import INCEPTION_DIGEST, Measured, MetricRecord, Provenance, Source, to_json
from cmcore.evaluate.score import split_score
from cmcore.evaluate.settings import EvalConfig
from cmcore.rng import generator


class ImageSet(Protocol):
    """Reference images: (N, C, R, R) uint8 with labels (N,), and what identifies them."""

    @property
    def images(self) -> np.ndarray: ...

    @property
    def labels(self) -> np.ndarray: ...

    @property
    def classes(self) -> int: ...

    @property
    def digest(self) -> str: ...


@dataclass(frozen=True)
class Reference:
    """The real images as an extractor sees them."""

    extractor: FeatureExtractor
    moments: Moments
    features: Tensor  # (N, D) float32
    digest: str  # of the images


def evaluate_samples(
    batches: Iterable[Tensor], references: Sequence[Reference], source: Source, config: EvalConfig
) -> list[MetricRecord]:
    """Measure uint8 images, given as batches (B, C, H, W), against every reference, in one pass over the images.

    Features are kept, images are not; every metric is computed from the features.
    """
    parts: list[list[Tensor]] = [[] for _ in references]
    for batch in batches:
        for reference, kept in zip(references, parts, strict=True):
            kept.append(reference.extractor(batch))
    records: list[MetricRecord] = []
    for reference, kept in zip(references, parts, strict=True):
        if not kept:
            raise ValueError("samples: expected at least one batch of images, got none")
        records += measure(torch.cat(kept), reference, source, config)
    return records


def measure(features: Tensor, reference: Reference, source: Source, config: EvalConfig) -> list[MetricRecord]:
    """Every metric of the samples with these features (B, D), as records."""
    extractor = reference.extractor
    provenance = Provenance(
        **vars(source),
        extractor=extractor.name,
        extractor_digest=extractor.digest,
        reference_digest=reference.digest,
        reference_count=len(reference.features),
        samples=len(features),
    )
    distance = "fid" if extractor.digest.startswith(INCEPTION_DIGEST) else "fd"
    values = {distance: frechet(features, reference.moments, config.bootstrap, config.seed)}
    values["kid"] = kid(
        features, reference.features, subsets=config.kid_subsets, size=config.kid_size, seed=config.seed
    )
    values |= precision_recall(reference.features, features, config.neighbours)._asdict()
    logits = extractor.logits(features)
    if logits is not None:
        values["score"] = split_score(logits, splits=config.score_splits, seed=config.seed)
    return [record(metric, measured, provenance) for metric, measured in values.items()]


def record(metric: str, measured: Measured, provenance: Provenance) -> MetricRecord:
    """A measured value with its provenance."""
    return MetricRecord(metric=metric, provenance=provenance, **measured._asdict())


def features_of(images: np.ndarray, extractor: FeatureExtractor, batch: int) -> Tensor:
    """Features (N, D) float32 of images (N, C, H, W) uint8."""
    return torch.cat([extractor(part) for part in _batches(images, batch)])


def reference(images: ImageSet, config: EvalConfig, workload: str, out: Path) -> Reference:
    """Train (or, for unlabelled images, draw) the workload's extractor and store the reference that it gives.

    Writes extractor.safetensors, features.npy, moments.npz and reference.json (accuracy, digests, how far two halves of
    the images are apart, and the records of the Gaussian baseline) into the folder `out`.
    """
    out.mkdir(parents=True, exist_ok=True)
    extractor, accuracy = _extractor(images, config, workload)
    extractor.save(out / "extractor.safetensors")
    built = store_features(images, extractor, config, out)
    baseline = evaluate_samples(
        _batches(gaussian_pixels(images.images, config.samples, config.seed), config.batch),
        [built],
        _baseline_source(images, config, workload),
        config,
    )
    described: dict[str, Any] = {
        "workload": workload,
        "data": {"digest": images.digest, "count": len(images.images), "classes": images.classes},
        "extractor": {
            "name": extractor.name,
            "digest": extractor.digest,
            "dim": extractor.dim,
            "kind": "classifier" if accuracy else "random",
            "accuracy": accuracy,
            "config": asdict(config.reference),
        },
        "halves": halves(built, config.seed),
        "baseline": [to_json(one) for one in baseline],
    }
    text = json.dumps(described, indent=2, sort_keys=True, allow_nan=False)
    (out / "reference.json").write_text(text + "\n", encoding="utf-8")
    return built


def store_features(images: ImageSet, extractor: FeatureExtractor, config: EvalConfig, out: Path) -> Reference:
    """Features and moments of the images under any extractor, written to features.npy and moments.npz in `out`."""
    out.mkdir(parents=True, exist_ok=True)
    features = features_of(images.images, extractor, config.batch)
    moments = Moments.of(features)
    np.save(out / "features.npy", features.numpy())
    moments.save(out / "moments.npz")
    return Reference(extractor, moments, features, images.digest)


def load_reference(folder: Path, extractor: FeatureExtractor | None = None, digest: str = "") -> Reference:
    """Read back what `reference` wrote; with an extractor and the images' digest, what `store_features` wrote."""
    if extractor is None:
        extractor = NetworkExtractor.load(folder / "extractor.safetensors")
        described = json.loads((folder / "reference.json").read_text(encoding="utf-8"))
        named, digest = described["extractor"]["name"], described["data"]["digest"]
        if extractor.name != named:
            raise ValueError(f"{folder}: reference.json is about {named}, extractor.safetensors holds {extractor.name}")
    features = torch.from_numpy(np.load(folder / "features.npy", allow_pickle=False))
    return Reference(extractor, Moments.load(folder / "moments.npz"), features, digest)


def halves(built: Reference, seed: int) -> float:
    """Frechet distance between two random halves of the reference: what a finite number of real images is apart."""
    order = torch.randperm(len(built.features), generator=generator(seed, "halves"))
    first, second = order.tensor_split(2)
    return frechet_distance(Moments.of(built.features[first]), Moments.of(built.features[second]))


def _extractor(
    images: ImageSet, config: EvalConfig, workload: str
) -> tuple[NetworkExtractor, dict[str, float | int] | None]:
    if images.classes < 2:
        _, channels, resolution, _ = images.images.shape
        fallback = config.reference
        return random_extractor(channels, resolution, width=fallback.width, features=fallback.features), None
    return train_classifier(images.images, images.labels, config.reference, classes=images.classes, workload=workload)


def _baseline_source(images: ImageSet, config: EvalConfig, workload: str) -> Source:
    name = "gaussian_pixels"
    count = len(images.images)
    fingerprint = digest([name, images.digest])
    return Source(
        workload=workload,
        run=name,
        method=name,
        fingerprint=fingerprint,
        sampler=name,
        nfe=0,
        ema="none",
        images=count,
        seed=config.seed,
    )


def _batches(images: np.ndarray | Tensor, batch: int) -> Iterator[Tensor]:
    for start in range(0, len(images), batch):
        part = images[start : start + batch]
        yield part if isinstance(part, Tensor) else torch.from_numpy(np.array(part))
