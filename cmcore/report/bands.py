"""Rows of images with labels: the one drawing behind samples, nearest images and edits."""

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from cmcore.report.plots import WIDTH, canvas, style
from cmcore.report.readers import Images

WIDE = 7.5  # inches of a figure with several blocks
NOTE = 0.15  # inches of a line below the images


def bands(
    rows: Sequence[tuple[str, Sequence[Images | None]]],
    columns: int,
    heads: Sequence[str] = (),
    *,
    left: float = 1.15,
    wide: bool = False,
    notes: Sequence[str] = (),
) -> Figure | None:
    """Rows of images under one another, each with a label at its left; None without rows.

    Args:
        rows: a label, and its blocks of images (N, C, H, W) from left to right; a block of None stays white.
        columns: at most so many images of each block.
        heads: what stands above the blocks.
        left: inches for the labels.
        wide: whether the figure is wider than a column of text.
        notes: lines below the images.
    """
    if not rows:
        return None
    columns = min(columns, *(len(block) for _, blocks in rows for block in blocks if block is not None))
    drawn = [[None if block is None else canvas(block, columns) for block in blocks] for _, blocks in rows]
    width = max(band.shape[1] for line in drawn for band in line if band is not None)
    lines = [_line(line, width) for line in drawn]
    picture = np.concatenate(lines)
    inches, top, bottom = WIDE if wide else WIDTH, 0.22 if heads else 0.05, 0.05 + NOTE * len(notes)
    tall = (inches - left) * picture.shape[0] / picture.shape[1]
    with style():
        height = tall + bottom + top
        figure = Figure(figsize=(inches, height))
        axes = figure.add_axes((left / inches, bottom / height, 1 - left / inches - 0.005, tall / height))
        axes.imshow(picture, interpolation="nearest", aspect="auto")
        axes.set_axis_off()
        tops = np.cumsum([0, *(line.shape[0] for line in lines)])
        for (label, _), start, line in zip(rows, tops, lines, strict=False):
            middle = start + 0.47 * line.shape[0]
            axes.annotate(label, (0, middle), (-6, 0), textcoords="offset points", ha="right", va="center", fontsize=8)
        block = picture.shape[1] / max(len(heads), 1)
        for place, head in enumerate(heads):
            spot = (place * block, 0)
            axes.annotate(head, spot, (0, 3), textcoords="offset points", va="bottom", fontsize=8, weight="bold")
        for place, note in enumerate(notes):
            at = (bottom - 0.05 - NOTE * place) / height
            figure.text(left / inches, at, note, va="top", fontsize=8, parse_math=False)
    return figure


def _line(blocks: Sequence[NDArray[np.uint8] | None], width: int) -> NDArray[np.uint8]:
    """Blocks side by side, each padded with white to `width` and a gap behind it."""
    height = next(block.shape[0] for block in blocks if block is not None)
    gap = round(0.04 * width) if len(blocks) > 1 else 0
    whole = np.full((height, len(blocks) * (width + gap), 3), 255, dtype=np.uint8)
    for place, block in enumerate(blocks):
        if block is not None:
            start = place * (width + gap)
            whole[: block.shape[0], start : start + block.shape[1]] = block
    return whole
