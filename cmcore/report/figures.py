"""Samples and training curves: each takes runs and returns a figure, or None where there is nothing to show."""

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from cmcore.report.captions import run_title
from cmcore.report.plots import WIDTH, canvas, colour, plain_log, style, thousands
from cmcore.report.readers import Images, RunReport


def samples(runs: Sequence[RunReport], columns: int = 8) -> Figure | None:
    """Rows are methods at each NFE, columns are the same noise; the teacher's end points come first."""
    rows: list[tuple[str, Images]] = []
    endpoints = next((run.endpoints for run in runs if run.endpoints is not None), None)
    if endpoints is not None:
        rows.append(("teacher's ODE\nend point", endpoints))
    for run in runs:
        rows += [(f"{run_title(run)}\n{row}", images) for row, images in (run.samples or {}).items()]
    return _bands(rows, columns)


def nearest(runs: Sequence[RunReport], columns: int = 12, most: int = 6) -> Figure | None:
    """Samples above their nearest training images, the nearest pairs first, of the `most` runs of the least distance.

    A run is shown at its own best number of function evaluations.
    """
    ranked = sorted((found for run in runs if (found := _best(run)) is not None), key=lambda found: found[0])
    rows: list[tuple[str, Images]] = []
    for _, run, row in ranked[:most]:
        ours, theirs = (run.samples or {})[row], (run.nearest or {})[row]
        gaps = np.square(ours.astype(np.float64) - theirs).reshape(len(ours), -1).sum(1)
        order = np.argsort(gaps, kind="stable")[:columns]
        rows += [(f"{run_title(run)}\n{row}", ours[order]), ("nearest", theirs[order])]
    return _bands(rows, columns)


def _best(run: RunReport) -> tuple[float, RunReport, str] | None:
    """The least distance of a run among its rows with nearest images, and the name of that row."""
    found = [
        (record.value, run, name)
        for record in run.records
        if record.key == "fd"
        for p in [record.provenance]
        for name in (f"{p.nfe} NFE", f"{p.nfe} NFE, {p.sampler}")
        if name in (run.nearest or {}) and name in (run.samples or {})
    ]
    return min(found, key=lambda one: one[0]) if found else None


def _bands(rows: Sequence[tuple[str, Images]], columns: int) -> Figure | None:
    """Rows of images under one another, with labels."""
    if not rows:
        return None
    columns = min(columns, *(len(images) for _, images in rows))
    bands = [canvas(images, columns) for _, images in rows]
    heights = [band.shape[0] for band in bands]
    picture = np.concatenate([_padded(band, max(b.shape[1] for b in bands)) for band in bands])
    left = 1.15
    with style():
        tall = (WIDTH - left) * picture.shape[0] / picture.shape[1]
        figure = Figure(figsize=(WIDTH, tall + 0.1))
        axes = figure.add_axes((left / WIDTH, 0.05 / (tall + 0.1), 1 - left / WIDTH - 0.005, tall / (tall + 0.1)))
        axes.imshow(picture, interpolation="nearest", aspect="auto")
        axes.set_axis_off()
        tops = np.cumsum([0, *heights[:-1]])
        for (label, _), top, height in zip(rows, tops, heights, strict=True):
            middle = top + 0.47 * height
            axes.annotate(label, (0, middle), (-6, 0), textcoords="offset points", ha="right", va="center", fontsize=9)
    return figure


def _padded(band: np.ndarray, width: int) -> np.ndarray:
    return np.pad(band, ((0, 0), (0, width - band.shape[1]), (0, 0)), constant_values=255)


def training_curves(runs: Sequence[RunReport], columns: int = 2) -> Figure | None:
    """Training loss against images seen, a panel per run: losses of different methods have different scales."""
    shown = [(index, run) for index, run in enumerate(runs) if run.history]
    if not shown:
        return None
    lines = -(-len(shown) // columns)
    height = 0.55 + 1.55 * lines
    with style():
        figure = Figure(figsize=(WIDTH, height))
        grid = figure.subplots(lines, columns, squeeze=False)
        figure.subplots_adjust(0.11, 0.5 / height, 0.97, 1 - 0.28 / height, hspace=0.55, wspace=0.26)
        for axes in grid.flat[len(shown) :]:
            axes.set_axis_off()
        for axes, (index, run) in zip(grid.flat, shown, strict=False):
            x = np.array([line["images"] for line in run.history], dtype=np.float64)
            y = np.array([line["loss"] for line in run.history], dtype=np.float64)
            axes.plot(x, y, color=colour(index), linewidth=0.7, alpha=0.35)
            axes.plot(x, smooth(y), color=colour(index))
            if (y > 0).all():
                axes.set_yscale("log")
                plain_log(axes)
            axes.set_title(run_title(run), color=colour(index))
            axes.tick_params(labelsize=8)
            axes.xaxis.set_major_formatter(FuncFormatter(thousands))
            axes.xaxis.set_major_locator(MaxNLocator(4))
        figure.supxlabel("training images seen", fontsize=10, y=0.06 / height)
    return figure


def smooth(y: np.ndarray, share: float = 0.05) -> np.ndarray:
    """Centred running mean over `share` of the curve; the window shrinks at both ends."""
    half = int(len(y) * share / 2)
    sums = np.concatenate([[0.0], np.cumsum(y)])
    low = np.maximum(np.arange(len(y)) - half, 0)
    high = np.minimum(np.arange(len(y)) + half + 1, len(y))
    return (sums[high] - sums[low]) / (high - low)
