"""The work of the `prepare` stage: any source -> images.npy, labels.npy and manifest.json, all or nothing."""

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from cmcore.data.errors import DataError
from cmcore.data.replacing import replacing
from cmcore.data.settings import DataConfig
from cmcore.data.sources import Source, open_source

Progress = Callable[[int, int], None]


def prepare(config: DataConfig, out: Path, progress: Progress | None = None) -> dict[str, Any]:
    """Write the data set into the folder `out` and return its manifest.

    images.npy is uint8 (N, C, H, W), labels.npy int64 (N,). Means and deviations are of pixels in [-1, 1]. The same
    images give the same bytes on every machine.

    Args:
        config: which images.
        out: a folder that is replaced as a whole, at the end.
        progress: told (images done, images in all) after each image.

    Raises:
        DataError: the first image that is wrong, by its name; `out` is then as it was.
    """
    source = open_source(config)
    if config.classes not in (0, len(source.class_names)):
        got = f"{len(source.class_names)} in {config.place or config.source}"
        raise DataError(f"data.classes: expected {config.classes} classes, got {got}")
    shape = (config.channels, config.resolution, config.resolution)
    try:
        with replacing(out) as folder:
            histogram = _write_images(folder / "images.npy", source, shape, progress or (lambda done, total: None))
            np.save(folder / "labels.npy", source.labels)
            manifest = _manifest(source, shape, histogram, digest(folder))
            (folder / "manifest.json").write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise DataError(f"{out}: cannot be written ({error})") from error
    return manifest


def _manifest(source: Source, shape: tuple[int, int, int], histogram: np.ndarray, sha256: str) -> dict[str, Any]:
    classes = len(source.class_names)
    return {
        "count": len(source.labels),
        "shape": list(shape),
        "classes": classes,
        "class_names": list(source.class_names),
        "class_counts": np.bincount(source.labels, minlength=classes).tolist() if classes else [],
        **statistics(histogram),
        "sha256": sha256,
    }


def _write_images(path: Path, source: Source, shape: tuple[int, int, int], progress: Progress) -> np.ndarray:
    """Write the rows as they come, not through a memory map (a full disk kills that process), and count pixel values.

    Returns:
        How often each channel has each value: int64 (C, 256).
    """
    count, size = len(source.labels), int(np.prod(shape))
    histogram = np.zeros((shape[0], 256), np.int64)
    with path.open("wb") as file:
        header = {"descr": "|u1", "fortran_order": False, "shape": (count, *shape)}
        np.lib.format.write_array_header_1_0(file, header)
        start, done = file.tell(), 0
        for row, image in source.images():
            if image.shape != shape:
                raise DataError(f"image {row}: expected shape {shape}, got {image.shape}")
            file.seek(start + row * size)
            file.write(image.tobytes())
            for channel, pixels in enumerate(image):
                histogram[channel] += np.bincount(pixels.ravel(), minlength=256)
            done += 1
            progress(done, count)
        file.flush()
        os.fsync(file.fileno())
    if done != count:
        raise DataError(f"expected {count} images, got {done}: the source changed while it was read")
    return histogram


def statistics(histogram: np.ndarray) -> dict[str, Any]:
    """Mean and standard deviation over all pixels and per channel, in [-1, 1], from counts of values (C, 256)."""
    values = np.arange(256) / 127.5 - 1

    def moments(counts: np.ndarray) -> tuple[float, float]:
        weights = counts / counts.sum()
        mean = float(weights @ values)
        return mean, float(np.sqrt(weights @ (values - mean) ** 2))

    mean, std = moments(histogram.sum(0))
    channels = [moments(counts) for counts in histogram]
    return {
        "mean": mean,
        "std": std,
        "channel_mean": [m for m, _ in channels],
        "channel_std": [s for _, s in channels],
    }


def digest(folder: Path) -> str:
    """sha256 over the bytes of images.npy, then labels.npy: shapes and types included."""
    total = hashlib.sha256()
    for name in ("images.npy", "labels.npy"):
        with (folder / name).open("rb") as file:
            while chunk := file.read(2**20):
                total.update(chunk)
    return total.hexdigest()
