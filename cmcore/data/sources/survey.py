"""A look at a data set before there is a workload for it: number, sizes, colours, classes, duplicates, faults."""

import hashlib
import io
import statistics
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from cmcore import limits
from cmcore.data.settings import DataConfig
from cmcore.data.sources.arrays import read_arrays
from cmcore.data.sources.decode import FORMATS, Background, decode, fit
from cmcore.data.sources.listing import list_files
from cmcore.data.sources.source import dense
from cmcore.errors import DataError
from cmcore.rng import generator

KEPT, KEPT_BYTES = 2000, 2**26  # most images that are kept
DECODED, SECONDS = 20_000, 8.0  # most that are decoded, and the time of the processor that this may take
FEWEST = 8  # that are decoded, however large
SHOWN = 3  # names in a message


@dataclass(frozen=True)
class Survey:
    """What a data set is like."""

    data: DataConfig  # source, place, channels and background; the resolution is that of `images`
    labels: np.ndarray  # int64 (N,)
    class_names: tuple[str, ...]
    sides: tuple[int, int, int]  # of the shorter sides: the least, the median, the greatest
    square: bool  # whether all images are
    decoded: int  # how many images were decoded: all, or a part of many large ones
    transparent: int  # of those, how many are not opaque
    duplicates: int  # files that repeat the bytes of another
    decoding: float  # seconds that one core takes to decode all
    images: np.ndarray  # a random part, uint8 (n, C, R, R)

    @property
    def count(self) -> int:
        """Of all images."""
        return len(self.labels)

    @property
    def classes(self) -> int:
        """Those with images; 0 where there are no labels."""
        return len(self.class_names)

    def at(self, resolution: int) -> np.ndarray:
        """The kept images, shrunk further: uint8 (n, C, resolution, resolution)."""
        return np.stack([fit(image, resolution) for image in self.images])


def survey(path: Path, subfolder: str = "", *, resolution: int = 64, background: Background = "white") -> Survey:
    """Look at a folder, an archive or an array of images.

    Every file is read; of very many or very large images a part is decoded.

    Args:
        path: of the data.
        subfolder: as `data.subfolder`.
        resolution: of the images that are kept.
        background: colour that transparent images are laid over.

    Raises:
        DataError: there is nothing, or files cannot be read as images: how many, the first of them, and why.
    """
    if path.suffix.lower() in (".npy", ".npz"):
        return _of_array(path, resolution)
    if not path.exists():
        raise DataError(f"{path}: expected a folder, an archive or an array of images, but there is none")
    listing = list_files(path, subfolder)
    count, kept = len(listing.row_of), _most(resolution)
    rank = torch.randperm(count, generator=generator("survey")).tolist()
    digests: set[bytes] = set()
    headers: list[_Header] = []
    broken: list[str] = []
    images: dict[int, np.ndarray] = {}
    decoded, transparent, colour, seconds = 0, 0, False, 0.0
    for row, name, content in listing.files():
        digests.add(hashlib.sha256(content).digest())
        try:
            header = _header(content, name)
            headers.append(header)
            # A random part, as large as the time of those so far allows.
            if rank[row] >= max(FEWEST, min(DECODED, SECONDS * decoded / seconds if seconds else DECODED)):
                continue
            start = time.thread_time()
            image = decode(content, 3, name=name, background=background)
            small = fit(image, resolution)
            seconds += time.thread_time() - start
        except DataError as error:
            broken.append(str(error))
            continue
        decoded += 1
        transparent += header.transparent
        colour = colour or bool((image != image[:1]).any())
        if rank[row] < kept:
            images[row] = small
    if broken:
        more = f"; and {len(broken) - SHOWN} more" if len(broken) > SHOWN else ""
        raise DataError(
            f"{path}: {len(broken)} of {count} files cannot be used as images; remove or repair them: "
            f"{'; '.join(sorted(broken)[:SHOWN])}{more}"
        )
    pictures = np.stack([images[row] for row in sorted(images)])
    data = DataConfig(
        source="folder" if path.is_dir() else "archive",
        path=str(path),
        subfolder=subfolder,
        resolution=resolution,
        channels=3 if colour else 1,
        background=background if transparent else "",
    )
    return Survey(
        data=data,
        labels=listing.labels,
        class_names=listing.class_names,
        sides=_sides([min(header.width, header.height) for header in headers]),
        square=all(header.width == header.height for header in headers),
        decoded=decoded,
        transparent=transparent,
        duplicates=len(headers) - len(digests),
        decoding=seconds / decoded * len(headers),
        images=pictures if colour else np.ascontiguousarray(pictures[:, :1]),
    )


class _Header(NamedTuple):
    width: int
    height: int
    transparent: bool


def _header(content: bytes, name: str) -> _Header:
    from PIL import Image

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            image: Any = Image.open(io.BytesIO(content), formats=FORMATS)
            width, height = image.size
            if width * height > limits.PIXELS:
                raise DataError(f"{name}: expected at most {limits.PIXELS} pixels, got {width} x {height}")
            clear = image.has_transparency_data and image.convert("RGBA").getextrema()[3][0] < 255
    except DataError:
        raise
    except Exception as error:  # decoders of broken files raise many kinds
        raise DataError(f"{name}: cannot be read as an image") from error
    return _Header(width, height, bool(clear))


def _of_array(path: Path, resolution: int) -> Survey:
    try:
        images, labels = read_arrays(path, 3)
    except DataError:
        images, labels = read_arrays(path, 1)
    count, channels, height, width = images.shape
    rows = torch.randperm(count, generator=generator("survey"))[: _most(resolution)].sort().values.numpy()
    some = np.stack([fit(image, resolution) for image in images[rows]])
    names: Sequence[str] = ()
    if labels is None:
        labels = np.zeros(count, np.int64)
    else:
        labels, names = dense(labels)
    digests = {hashlib.sha256(np.ascontiguousarray(image).tobytes()).digest() for image in images}
    return Survey(
        data=DataConfig(source="array", path=str(path), resolution=resolution, channels=channels),
        labels=labels,
        class_names=tuple(names),
        sides=_sides([min(height, width)]),
        square=height == width,
        decoded=count,
        transparent=0,
        duplicates=count - len(digests),
        decoding=0.0,
        images=some,
    )


def _most(resolution: int) -> int:
    """How many images of a resolution are kept."""
    return max(FEWEST, min(KEPT, KEPT_BYTES // (3 * resolution**2)))


def _sides(short: list[int]) -> tuple[int, int, int]:
    return min(short), int(statistics.median(short)), max(short)
