"""Latents of an autoencoder in the layout of EDM2's dataset tool: one .npy file per image, mean above deviation."""

import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from cmcore.bounded import npy_header
from cmcore.data.settings import LATENT_CHANNELS, DataConfig
from cmcore.data.sources.listing import list_files
from cmcore.data.sources.source import Block, Source
from cmcore.errors import DataError, reason

SOME = 64  # files to a block
LIMIT = 10_000  # largest magnitude, well inside the range of float16


def latents(config: DataConfig) -> Source:
    """The latents below the config's place, labelled like images.

    Raises:
        DataError: a file is no array of a mean and a standard deviation of the config's resolution.
    """
    listing = list_files(Path(config.place), config.subfolder)
    shape = (2 * LATENT_CHANNELS, config.resolution, config.resolution)

    def blocks() -> Iterator[Block]:
        rows: list[int] = []
        stored = np.empty((SOME, *shape), config.precision)
        for row, name, content in listing.files():
            stored[len(rows)] = _read(content, shape, name)
            rows.append(row)
            if len(rows) == SOME:
                yield Block(rows, stored)
                rows = []
        if rows:
            yield Block(rows, stored[: len(rows)])

    return Source(listing.labels, listing.class_names, blocks, "latents", listing.captions)


def _read(content: bytes, shape: tuple[int, ...], where: str) -> np.ndarray:
    header = npy_header(io.BytesIO(content), where)
    if header.shape != shape or header.dtype not in (np.float32, np.float16):
        got = f"{header.dtype} {header.shape}"
        raise DataError(f"{where}: expected a float32 mean and deviation {shape}, got {got}; see `data.resolution`")
    try:
        array = np.load(io.BytesIO(content), allow_pickle=False)
    except Exception as error:  # numpy raises many kinds for damaged files
        raise DataError(f"{where}: cannot be read as a .npy file ({reason(error)})") from error
    if not (np.abs(array) < LIMIT).all() or (array[LATENT_CHANNELS:] < 0).any():
        raise DataError(f"{where}: expected numbers below {LIMIT} in size, and deviations of at least 0")
    return array
