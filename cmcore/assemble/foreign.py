"""Samples of any generator: read as they are, never resized or converted, and measured like those of a run."""

import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from cmcore.data.sources.arrays import read_arrays
from cmcore.data.sources.decode import FORMATS, decode
from cmcore.data.sources.files import entries
from cmcore.errors import DataError
from cmcore.evaluate.collect import Part, collect, spans
from cmcore.evaluate.nearest import Training
from cmcore.evaluate.records import MetricRecord, Source
from cmcore.evaluate.reference import kept_rows
from cmcore.evaluate.settings import EvalConfig
from cmcore.evaluate.suite import Reference, copies, measure

ARRAYS = (".npy", ".npz")


class Shape(NamedTuple):
    """Of an image."""

    channels: int
    resolution: int


class Read(NamedTuple):
    """Images in a sample set, and how many of them are measured."""

    total: int
    measured: int


def read_samples(path: Path, shape: Shape, config: EvalConfig, out: Path) -> Read:
    """Check a sample set, and write the images to measure into the file `out`, uint8 (N, C, R, R), in their order.

    These are all, or where a run has fewer samples, as many as a run has, drawn at random: a folder may be sorted by
    class, and distances of equal numbers of samples compare.

    Args:
        path: a folder or archive of pictures, a .npy file, or a .npz file as `cmlab sample` and ADM write it (images,
            arr_0).
        shape: of every image.
        config: says how many samples suffice, and how many a run has.
        out: a .npy file.

    Raises:
        DataError: an image cannot be read or is of another shape, or there are too few; the message says which.
    """
    if not path.exists():
        raise DataError(f"--samples: expected a folder, an archive, a .npy or a .npz file, got nothing at {path}")
    if path.is_file() and path.suffix.lower() in ARRAYS:
        images, _ = read_arrays(path, shape.channels)
        _require_size(str(path), images.shape[3], images.shape[2], shape)
        chosen = _chosen(path, len(images), config)
        _write(out, shape, len(chosen), (images[row] for row in chosen))
        return Read(len(images), len(chosen))
    total = sum(1 for _ in entries(path))
    chosen = _chosen(path, total, config)
    _write(out, shape, len(chosen), _pictures(path, shape, set(chosen.tolist())))
    return Read(total, len(chosen))


def _chosen(path: Path, count: int, config: EvalConfig) -> np.ndarray:
    """The rows to measure."""
    if count < config.least:
        needs = f"at least {config.least} images (the largest of eval.kid_size, neighbours + 1 and score_splits)"
        raise DataError(f"{path}: expected {needs}, got {count}")
    ranges = max(1, min(config.seed_ranges, count // config.samples))
    return kept_rows(count, ranges * config.samples)


def _pictures(path: Path, shape: Shape, chosen: set[int]) -> Iterator[np.ndarray]:
    """The chosen pictures; the size and the colours of all others are checked as well."""
    for row, entry in enumerate(entries(path)):
        name, data = f"{path}/{entry.name}", entry.read()
        _check(data, name, shape)
        if row in chosen:
            yield decode(data, shape.channels, name=name)


def _check(data: bytes, name: str, shape: Shape) -> None:
    """Read the header of a picture alone."""
    from PIL import Image

    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            (width, height), grey = image.size, image.mode in ("1", "L", "LA")
    except Exception:  # decoders of broken files raise many kinds; this one says which in a sentence
        decode(data, shape.channels, name=name)
        raise
    _require_size(name, width, height, shape)
    if grey != (shape.channels == 1):
        wanted, got = ("grey", "colours") if shape.channels == 1 else ("colours", "grey")
        raise DataError(f"{name}: expected {wanted}, as the images of the workload have, got {got}")


def _require_size(name: str, width: int, height: int, shape: Shape) -> None:
    if {width, height} != {shape.resolution}:
        side = shape.resolution
        raise DataError(
            f"{name}: expected {side} x {side} pixels, as the images of the workload have, got {width} x {height}"
        )


def _write(out: Path, shape: Shape, count: int, images: Iterator[np.ndarray]) -> None:
    """An array, image by image. A full disk would kill a process that writes to a memory map."""
    size = (shape.channels, shape.resolution, shape.resolution)
    out.parent.mkdir(parents=True, exist_ok=True)
    with out.open("wb") as file:
        header = {"descr": "|u1", "fortran_order": False, "shape": (count, *size)}
        np.lib.format.write_array_header_1_0(file, header)
        for image in images:
            file.write(np.ascontiguousarray(image).tobytes())


def score(
    images: np.ndarray,
    references: list[Reference],
    source: Source,
    config: EvalConfig,
    training: Training | None = None,
    device: str = "cpu",
    on_images: Callable[[int], None] = lambda count: None,
) -> list[MetricRecord]:
    """The records that an evaluation makes of a row with these images: the same bits for the same images.

    Args:
        images: uint8 (N, C, R, R), of `read_samples`.
        references: real images under one or more extractors.
        source: of the samples.
        config: of the evaluation.
        training: images that samples are compared with in pixels.
        device: of extractors and distances.
        on_images: gets the size of every batch that was measured.
    """
    ranges = max(1, len(images) // config.samples)
    size = len(images) // ranges
    firsts = [index * size for index in range(ranges)]

    def batches(first: int) -> Iterator[Tensor]:
        for span in spans(size, config.shard, first):  # a batch ends where a shard does, as in an evaluation
            for start in range(span.start, span.stop, config.batch):
                batch = torch.from_numpy(np.array(images[start : min(start + config.batch, span.stop)]))
                yield batch.to(device)
                on_images(len(batch))

    extractors = [reference.extractor for reference in references]
    parts: list[list[Part]] = [
        collect(batches(first), extractors, shard=config.shard, keep=config.kept, device=device) for first in firsts
    ]
    records = measure(parts, references, source, config, firsts, device, every=True)
    if training is None or not config.nearest:
        return records
    some = torch.from_numpy(np.array(images[: min(config.nearest, size)]))
    found = training.nearest(some, device)
    return records + copies(found.squared, some[0].numel(), references[0].digest, len(training.images), source)
