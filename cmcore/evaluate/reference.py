"""The reference of a workload: an extractor, its features of the real images, and the metrics of the baseline."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cmcore.config import ConfigError, digest
from cmcore.data.codec import Reconstruction
from cmcore.evaluate.baseline import gaussian_pixels
from cmcore.evaluate.classifier import READER, as_read, judge, train_classifier
from cmcore.evaluate.collect import Collector, Part
from cmcore.evaluate.features import FeatureExtractor, NetworkExtractor, random_extractor
from cmcore.evaluate.frechet import frechet_distance
from cmcore.evaluate.images import ImageArray, ImageSet
from cmcore.evaluate.moments import Moments
from cmcore.evaluate.nearest import Training
from cmcore.evaluate.published import read_moments
from cmcore.evaluate.records import (
    NO_EXTRACTOR,
    DataFacts,
    ExtractorFacts,
    Measured,
    MetricRecord,
    Provenance,
    ReferenceFacts,
    Source,
)
from cmcore.evaluate.settings import EvalConfig
from cmcore.evaluate.shipped import shipped_extractor
from cmcore.evaluate.suite import Reference, copies, evaluate_samples, measure, record
from cmcore.layers.classifier import SHIPPED
from cmcore.rng import generator
from cmcore.tensors import mean_per_sample, to_float

REFERENCE = "reference.json"
TEST = "test"  # folder of the test images' features
READ = 2**12  # most outputs of a reader: the words of all places
_SAMPLES, _FITTED = 5000, 10_000  # most samples of the baseline, and most images of its fit
_NUMBERS = 2**28  # most numbers in all of the samples


def reference(
    images: ImageSet,
    config: EvalConfig,
    workload: str,
    out: Path,
    device: torch.device | str = "cpu",
    test: ImageSet | None = None,
    reconstructions: Mapping[str, Reconstruction] | None = None,
) -> Reference:
    """Take, train or, for unlabelled images, draw the workload's extractor and store the reference in its features.

    Of images with captions it is a reader of them.

    Writes extractor.safetensors, features.npy, moments.npz and reference.json (accuracy, digests, the distance between
    two halves of the images, and the records of the baselines and of what codecs make of images, each under its name)
    into the folder `out`, and the features of the test images into its folder `test`. The extractor is trained on the
    device; on one kind of CPU the same data give the same bits.
    """
    out.mkdir(parents=True, exist_ok=True)
    extractor, accuracy = _extractor(images, config, workload, device)
    extractor.save(out / "extractor.safetensors")
    built = store_features(images, extractor.to(device), config, out, device, test)
    training = Training(images.images, images.digest) if isinstance(images.images, np.ndarray) else None
    baseline = _baseline(images, built, training, config, workload, device)
    anchors = _halves(built, training, config, workload, device)
    if test is not None:
        anchors += _test_images(test, built, training, config, workload, device)
    for name, reconstruction in (reconstructions or {}).items():
        anchors += _reconstructed(name, reconstruction, built, config, workload, device)
    facts = ReferenceFacts(
        workload=workload,
        data=DataFacts(digest=images.digest, count=len(images.images), classes=images.classes),
        extractor=ExtractorFacts(
            name=extractor.name,
            digest=extractor.digest,
            dim=extractor.dim,
            kind="reader" if is_reader(extractor) else "classifier" if accuracy else "random",
            accuracy=accuracy,
            config=asdict(config.reference),
        ),
        halves=halves(built, config.seed),
        baseline=tuple(baseline),
        anchors=tuple(anchors),
    )
    _write_json(out / REFERENCE, facts.to_json())
    return built


def store_features(
    images: ImageSet,
    extractor: FeatureExtractor,
    config: EvalConfig,
    out: Path,
    device: torch.device | str = "cpu",
    test: ImageSet | None = None,
) -> Reference:
    """Write the features and moments of the images under any extractor to features.npy and moments.npz in `out`.

    Those of test images are written to its folder `test`, with their digest.
    The moments are of all images, the features of at most `config.kept` of them, chosen at random. Memory holds a batch
    of images and a shard of features.
    """
    out.mkdir(parents=True, exist_ok=True)
    rows = kept_rows(len(images.images), config.kept)
    shape = (len(rows), extractor.dim)
    kept = np.lib.format.open_memmap(out / "features.npy", mode="w+", dtype=np.float32, shape=shape)
    collector, written = Collector(config.shard, 0, device), 0
    for batch in _batches(images.images, config.batch):
        features = extractor(batch)
        here = rows[written : np.searchsorted(rows, collector.count + len(batch))] - collector.count
        kept[written : written + len(here)] = features[here].cpu().numpy()
        written += len(here)
        collector.add(features)
    kept.flush()
    collector.part().moments.save(out / "moments.npz")
    if test is not None:
        store_features(test, extractor, config, out / TEST, device)
        _write_json(out / TEST / "digest.json", {"digest": test.digest})
    return load_reference(out, extractor, images.digest)


def kept_rows(count: int, keep: int) -> np.ndarray:
    """Rows of the images whose features are kept: all, or a random subset, in ascending order."""
    if count <= keep:
        return np.arange(count)
    return torch.randperm(count, generator=generator("kept features"))[:keep].sort().values.numpy()


def store_published(path: Path, dim: int, out: Path) -> None:
    """Write published moments of features of dimension `dim` as the reference: moments.npz and published.json in `out`.

    Raises:
        DataError: the file does not hold moments of features of that dimension.
    """
    out.mkdir(parents=True, exist_ok=True)
    moments, found = read_moments(path, dim)
    moments.save(out / "moments.npz")
    why = f"No KID, precision and recall in Inception features: the reference is the published moments {path.name}"
    _write_json(out / "published.json", {"file": path.name, "digest": found, "absent": why})


def facts_of(folder: Path) -> ReferenceFacts:
    """The facts about a reference, as `reference` wrote them."""
    return ReferenceFacts.from_json(json.loads((folder / REFERENCE).read_text(encoding="utf-8")))


def load_reference(
    folder: Path, extractor: FeatureExtractor | None = None, digest: str = "", device: torch.device | str = "cpu"
) -> Reference:
    """Read a reference that `reference` wrote; with an extractor, one of `store_features` or `store_published`.

    Features are memory-mapped. `digest` is that of the images; an extractor that is read is moved to the device.

    Raises:
        ValueError: the files are damaged, or of different references.
    """
    moments = Moments.load(folder / "moments.npz")
    if extractor is None:
        extractor = NetworkExtractor.load(folder / "extractor.safetensors").to(device)
        described = facts_of(folder)
        named, digest = described.extractor.name, described.data.digest
        if extractor.name != named:
            raise ValueError(f"{folder}: reference.json is about {named}, extractor.safetensors holds {extractor.name}")
    elif (folder / "published.json").exists():
        published = json.loads((folder / "published.json").read_text(encoding="utf-8"))
        return Reference(extractor, moments, None, published["digest"], published["absent"])
    # Copy on write, as torch has no read-only tensors.
    features = torch.from_numpy(np.load(folder / "features.npy", mmap_mode="c", allow_pickle=False))
    test = folder / TEST
    if not test.is_dir():
        return Reference(extractor, moments, features, digest, reads=is_reader(extractor))
    test_digest = json.loads((test / "digest.json").read_text(encoding="utf-8"))["digest"]
    return Reference(
        extractor,
        moments,
        features,
        digest,
        test=Moments.load(test / "moments.npz"),
        test_digest=test_digest,
        reads=is_reader(extractor),
    )


def halves(built: Reference, seed: int) -> float:
    """Frechet distance between two random halves of the reference, the level that finite samples alone cause."""
    assert built.features is not None
    first, second = _half_rows(built, seed)
    return frechet_distance(Moments.of(built.features[first]), Moments.of(built.features[second]))


def _half_rows(built: Reference, seed: int) -> tuple[Tensor, Tensor]:
    assert built.features is not None
    order = torch.randperm(len(built.features), generator=generator(seed, "halves"))
    first, second = order.tensor_split(2)
    return first, second


def _halves(
    built: Reference, training: Training | None, config: EvalConfig, workload: str, device: torch.device | str
) -> list[MetricRecord]:
    """Records of one half of the images, as if it were samples, against the other: fresh images are like this."""
    assert built.features is not None
    first, second = _half_rows(built, config.seed)
    known = built.features[second]
    if min(len(first), len(second)) < max(2, config.neighbours + 1, config.score_splits):
        return []
    few = replace(config, kid_size=min(config.kid_size, len(second)))
    half = Reference(built.extractor, Moments.of(known), known, digest([built.digest, "half"]), reads=built.reads)
    part = Part(Moments.of(built.features[first]), built.features[first])
    source = _source("half", half.digest, workload, 0, config)
    records = measure([[part]], [half], source, few, device=device, every=True)
    if training is None or not config.nearest:
        return records
    rows = kept_rows(len(training.images), len(built.features))
    others = Training(training.images[np.sort(rows[second])], half.digest)
    samples = torch.from_numpy(np.array(training.images[rows[first[: config.nearest]]]))
    return records + _copies(samples, others, source, device)


def _test_images(
    test: ImageSet,
    built: Reference,
    training: Training | None,
    config: EvalConfig,
    workload: str,
    device: torch.device | str,
) -> list[MetricRecord]:
    """Records of the test images, as if they were samples."""
    if len(test.images) < config.least:
        return []
    source = _source("test", test.digest, workload, 0, config)
    own = replace(built, test=None)  # their distance from themselves says nothing
    batches, told = _batches(test.images, config.batch), _told(test.captions)
    records = evaluate_samples(batches, [own], source, config, device, every=True, told=told)
    if training is None or not config.nearest:
        return records
    samples = torch.from_numpy(np.array(test.images[: config.nearest]))
    return records + _copies(samples, training, source, device)


def _told(captions: np.ndarray | None) -> Callable[[Sequence[int]], Tensor] | None:
    """The captions of images by their numbers, rows of words (B, L); None where there are none."""
    return None if captions is None else lambda numbers: torch.from_numpy(captions[list(numbers)])


def _reconstructed(
    name: str,
    reconstruction: Reconstruction,
    built: Reference,
    config: EvalConfig,
    workload: str,
    device: torch.device | str,
) -> list[MetricRecord]:
    """Records of decoded images, as if they were samples: no model that a codec decodes can be expected to be nearer.

    `name` is that of their run. The reconstruction error is the root mean square distance of an image from what it was,
    pixels in [-1, 1].
    """
    images, decoded = reconstruction
    rows = kept_rows(len(images.images), max(config.samples, config.least))
    if len(rows) < config.least:
        return []
    errors = list[Tensor]()

    def batches() -> Iterator[Tensor]:
        for some in np.array_split(rows, max(1, len(rows) // config.batch)):
            again = torch.from_numpy(decoded.images[some])
            errors.append(mean_per_sample((to_float(again) - to_float(torch.from_numpy(images.images[some]))) ** 2))
            yield again

    source = _source(name, decoded.digest, workload, 0, config)
    told = _told(None if images.captions is None else images.captions[rows])
    records = evaluate_samples(batches(), [built], source, config, device, every=True, told=told)
    rmse = torch.cat(errors).double().sqrt()
    provenance = Provenance(
        **vars(source),
        extractor=NO_EXTRACTOR,
        extractor_digest=NO_EXTRACTOR,
        reference_digest=images.digest,
        reference_count=len(images.images),
        samples=len(rows),
    )
    error = Measured(float(rmse.mean()), float(rmse.std() / len(rows) ** 0.5), "images")
    return [*records, record("reconstruction", error, provenance)]


def _copies(samples: Tensor, training: Training, source: Source, device: torch.device | str) -> list[MetricRecord]:
    found = training.nearest(samples, device)
    return copies(found.squared, samples[0].numel(), training.digest, len(training.images), source)


def _source(name: str, mark: str, workload: str, images: int, config: EvalConfig) -> Source:
    return Source(
        workload=workload, run=name, method=name, fingerprint=digest([name, mark]), sampler=name, nfe=0, ema="none",
        images=images, seed=config.seed,
    )  # fmt: skip


def _extractor(
    images: ImageSet, config: EvalConfig, workload: str, device: torch.device | str
) -> tuple[NetworkExtractor, dict[str, float | int] | None]:
    if config.extractor == SHIPPED:
        extractor = shipped_extractor(workload)
        made = (extractor.net.shape.channels, extractor.net.shape.resolution, extractor.net.shape.classes)
        if made != (images.images.shape[1], images.images.shape[2], images.classes):
            raise ConfigError("eval.extractor", f"{SHIPPED!r} is for (channels, resolution, classes) {made}")
        return extractor, judge(extractor, images.images, images.labels, config.reference, classes=images.classes)
    targets = _read_labels(images)
    if targets is not None:
        words = 1 + len(images.words.vocabulary) if images.words else 0
        return train_classifier(
            images.images, targets, config.reference, classes=words, workload=workload, device=device
        )
    if images.classes < 2:
        _, channels, resolution, _ = images.images.shape
        fallback = config.reference
        return random_extractor(channels, resolution, width=fallback.width, features=fallback.features), None
    return train_classifier(
        images.images, images.labels, config.reference, classes=images.classes, workload=workload, device=device
    )


def _read_labels(images: ImageSet) -> np.ndarray | None:
    """The labels of a reader of the captions; None where there are none, or they are too many words for it."""
    if images.captions is None or images.words is None:
        return None
    outputs = images.words.length * (1 + len(images.words.vocabulary))
    return as_read(images.captions) if outputs <= READ else None


def is_reader(extractor: FeatureExtractor) -> bool:
    """Whether the extractor reads captions; else it names classes, or nothing."""
    return isinstance(extractor, NetworkExtractor) and extractor.kind.endswith(f"_{READER}")


def _baseline(
    images: ImageSet,
    built: Reference,
    training: Training | None,
    config: EvalConfig,
    workload: str,
    device: torch.device | str,
) -> list[MetricRecord]:
    """Records of the Gaussian baseline, from as many images and samples as fit into memory."""
    name, pixels = "gaussian_pixels", images.images[0].size
    count = max(min(config.samples, _SAMPLES, _NUMBERS // pixels), config.least)
    few = min(_FITTED, 4 * _NUMBERS // pixels)
    fitted = images.images if len(images.images) <= few else images.images[kept_rows(len(images.images), few)]
    source = _source(name, images.digest, workload, len(fitted), config)
    samples = gaussian_pixels(fitted, count, config.seed)
    records = evaluate_samples(_batches(samples, config.batch), [built], source, config, device, every=True)
    if training is None or not config.nearest:
        return records
    return records + _copies(samples[: config.nearest], training, source, device)


def _batches(images: ImageArray | Tensor, batch: int) -> Iterator[Tensor]:
    for start in range(0, len(images), batch):
        part = images[start : start + batch]
        yield part if isinstance(part, Tensor) else torch.from_numpy(np.array(part))


def _write_json(path: Path, data: Any) -> None:
    path.write_text(json.dumps(data, indent=2, sort_keys=True, allow_nan=False) + "\n", encoding="utf-8")
