"""Image files as blocks of images, decoded on all cores."""

import itertools
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from cmcore.data.settings import DataConfig
from cmcore.data.sources.decode import decode_all
from cmcore.data.sources.listing import Listing, list_files
from cmcore.data.sources.pool import cores, ordered
from cmcore.data.sources.source import Block, Source

SOME, SOME_BYTES = 256, 2**22  # files that are decoded as one task
FEW = 4096  # files below which starting processes takes longer than decoding


def pictures(config: DataConfig) -> Source:
    """The images below the config's place.

    Raises:
        DataError: there are none, a name stands twice, or labels and images do not belong together.
    """
    listing = list_files(Path(config.place), config.subfolder)
    decode = partial(
        decode_all,
        channels=config.channels,
        resolution=config.resolution,
        resize=config.resize,
        background=config.background,
    )

    def blocks() -> Iterator[Block]:
        rows, files = itertools.tee(_groups(listing))
        images = ordered(decode, (group for _, group in files), cores() if len(listing.row_of) > FEW else 1)
        for (row, _), decoded in zip(rows, images, strict=True):
            yield Block(row, decoded)

    return Source(listing.labels, listing.class_names, blocks, captions=listing.captions)


def _groups(listing: Listing) -> Iterator[tuple[list[int], list[tuple[str, bytes]]]]:
    """Rows and named contents, in groups large enough for the cost of a transfer between processes."""
    rows: list[int] = []
    files: list[tuple[str, bytes]] = []
    size = 0
    for row, name, content in listing.files():
        rows.append(row)
        files.append((name, content))
        size += len(content)
        if len(files) == SOME or size >= SOME_BYTES:
            yield rows, files
            rows, files, size = [], [], 0
    if files:
        yield rows, files
