"""The prepare stage: any source -> one array, labels.npy and manifest.json, written atomically."""

import hashlib
import itertools
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from cmcore.atomic import replacing
from cmcore.data.images import ARRAYS
from cmcore.data.latent_space import normalisation
from cmcore.data.settings import DataConfig
from cmcore.data.sources.open import open_source
from cmcore.data.sources.source import Block, Source
from cmcore.data.sources.statistics import Latents, Pixels, Statistics
from cmcore.errors import DataError

Progress = Callable[[int, int], None]


def prepare(config: DataConfig, out: Path, progress: Progress | None = None) -> dict[str, Any]:
    """Write the data set into the folder `out` and return its manifest.

    images.npy is uint8 (N, C, H, W), latents.npy holds means and standard deviations (N, 2C, H, W), labels.npy is int64
    (N,). Statistics are of pixels in [-1, 1], or of normalised latents. Equal sources give equal bytes everywhere.

    Args:
        config: the source.
        out: a folder that is replaced as a whole, at the end.
        progress: called with (images done, images in all), before that with (bytes done, bytes in all) of a download.

    Raises:
        DataError: an image is wrong; the message names the first. `out` is then unchanged.
    """
    source, shape = open_source(config, progress), (config.channels, config.resolution, config.resolution)
    latent = source.kind == "latents"
    stored = (2 * shape[0], *shape[1:]) if latent else shape
    seen = Latents(shape[0]) if latent else Pixels(shape[0])
    try:
        with replacing(out) as folder:
            array = folder / ARRAYS[source.kind]
            dtype = np.dtype(config.precision if latent else np.uint8)
            _write(array, source, stored, dtype, seen, progress or (lambda done, total: None))
            np.save(folder / "labels.npy", source.labels)
            manifest = _manifest(source, shape, seen.result(), digest(array, folder / "labels.npy"))
            (folder / "manifest.json").write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise DataError(f"{out}: cannot be written ({error})") from error
    return manifest


def _manifest(source: Source, shape: tuple[int, int, int], seen: dict[str, Any], sha256: str) -> dict[str, Any]:
    classes = len(source.class_names)
    return {
        **({"kind": source.kind, **normalisation()} if source.kind == "latents" else {}),
        "count": len(source.labels),
        "shape": list(shape),
        "classes": classes,
        "class_names": list(source.class_names),
        "class_counts": np.bincount(source.labels, minlength=classes).tolist() if classes else [],
        **seen,
        "sha256": sha256,
    }


def _write(
    path: Path, source: Source, shape: tuple[int, ...], dtype: np.dtype, seen: Statistics, progress: Progress
) -> None:
    """Write the rows in the order of the source. A full disk would kill a process that writes to a memory map."""
    count, size, done = len(source.labels), int(np.prod(shape)) * dtype.itemsize, 0
    with path.open("wb") as file:
        header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": (count, *shape)}
        np.lib.format.write_array_header_1_0(file, header)
        start = file.tell()
        for block in source.blocks():
            if block.images.shape != (len(block.rows), *shape) or block.images.dtype != dtype:
                got = f"{block.images.dtype} {block.images.shape}"
                raise DataError(f"images from {block.rows[0]} on: expected {dtype} {shape} each, got {got} in all")
            for row, image in _runs(block):
                file.seek(start + row * size)
                file.write(image.tobytes())
            seen.add(block.images)
            done += len(block.rows)
            progress(done, count)
        file.flush()
        os.fsync(file.fileno())
    if done != count:
        raise DataError(f"expected {count} images, got {done}: the source changed while it was read")


def _runs(block: Block) -> list[tuple[int, np.ndarray]]:
    """The images of consecutive rows as one array each, for one write."""
    rows = np.asarray(block.rows)
    cuts = [0, *(np.flatnonzero(np.diff(rows) != 1) + 1).tolist(), len(rows)]
    return [(int(rows[low]), block.images[low:high]) for low, high in itertools.pairwise(cuts)]


def digest(*files: Path) -> str:
    """sha256 over the bytes of the array, then of labels.npy: shapes and types included."""
    total = hashlib.sha256()
    for path in files:
        with path.open("rb") as file:
            while chunk := file.read(2**20):
                total.update(chunk)
    return total.hexdigest()
