"""Samples and training curves: each takes runs and returns a figure, or None where there is nothing to show."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from cmcore.evaluate.records import Provenance
from cmcore.report.bands import WIDE, bands
from cmcore.report.captions import prompts, run_title
from cmcore.report.headline import FEW
from cmcore.report.plots import WIDTH, colour, plain_log, style, thousands
from cmcore.report.readers import Images, RunReport
from cmcore.report.seeds import pooled

MORE = "more"


def samples(runs: Sequence[RunReport], columns: int = 5) -> Figure | None:
    """A row per run, a block of images per number of function evaluations; every block shows the same noise.

    The teacher's end points come first. Of more than four evaluations, each run shows its best row. Captions that the
    runs were told stand below, in the order of the images.
    """
    endpoints = next((run.endpoints for run in runs if run.endpoints is not None), None)
    shown = [(run_title(run), blocks) for run in runs if (blocks := _blocks(run))]
    heads = [head for head in (*(f"{nfe} NFE" for nfe in FEW), MORE) if any(head in blocks for _, blocks in shown)]
    rows = [(label, tuple(blocks.get(head) for head in heads)) for label, blocks in shown]
    if endpoints is not None:
        rows.insert(0, ("teacher's ODE", (*[None] * (len(heads) - 1), endpoints)))
    notes = [f"{place}  {text}" for place, text in enumerate(prompts(runs, columns), 1)]
    return bands(rows, columns, heads, wide=True, notes=notes)


def _blocks(run: RunReport) -> dict[str, Images]:
    """Images by block."""
    found = {}
    kept = [record for record in pooled(run).records if record.key == "fd"]
    for record in sorted(kept, key=lambda one: -one.value):  # the best of a block is written last
        if images := row_images(run.samples or {}, record.provenance):
            nfe = record.provenance.nfe
            found[f"{nfe} NFE" if nfe in FEW else MORE] = images[0]
    return found


def row_images(images: Mapping[str, Images], source: Provenance) -> tuple[Images, ...]:
    """The images of a row, if they are kept; rows are named after a sampler where several have one cost."""
    names = (f"{source.nfe} NFE, {source.sampler}", f"{source.nfe} NFE")
    return tuple(images[name] for name in names if name in images)[:1]


def nearest(runs: Sequence[RunReport], columns: int = 12, most: int = 6) -> Figure | None:
    """Samples above their nearest training images, the nearest pairs first, of the `most` runs of the least distance.

    A run is shown at its own best number of function evaluations.
    """
    ranked = sorted((found for run in runs if (found := _best(run)) is not None), key=lambda found: found[0])
    rows: list[tuple[str, Images]] = []
    for _, run, row in ranked[:most]:
        theirs = (run.nearest or {})[row]
        ours = (run.samples or {})[row][: len(theirs)]  # `eval.nearest` may be fewer than are shown
        gaps = np.square(ours.astype(np.float64) - theirs).reshape(len(ours), -1).sum(1)
        order = np.argsort(gaps, kind="stable")[:columns]
        rows += [(f"{run_title(run)}\n{row}", ours[order]), ("nearest", theirs[order])]
    return bands([(label, (images,)) for label, images in rows], columns)


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


def training_curves(runs: Sequence[RunReport]) -> Figure | None:
    """Training loss against images seen, a panel per run: losses of different methods have different scales."""
    shown = [(index, run) for index, run in enumerate(runs) if run.history]
    if not shown:
        return None
    columns, width = (2, WIDTH) if len(shown) <= 6 else (4, WIDE)
    lines = -(-len(shown) // columns)
    height = 0.55 + 1.55 * lines
    with style():
        figure = Figure(figsize=(width, height))
        grid = figure.subplots(lines, columns, squeeze=False)
        figure.subplots_adjust(0.55 / width, 0.5 / height, 0.97, 1 - 0.28 / height, hspace=0.55, wspace=0.3)
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
            axes.xaxis.set_major_locator(MaxNLocator(3))
        figure.supxlabel("training images seen", fontsize=10, y=0.06 / height)
    return figure


def smooth(y: np.ndarray, share: float = 0.05) -> np.ndarray:
    """Centred running mean over `share` of the curve; the window shrinks at both ends."""
    half = int(len(y) * share / 2)
    sums = np.concatenate([[0.0], np.cumsum(y)])
    low = np.maximum(np.arange(len(y)) - half, 0)
    high = np.minimum(np.arange(len(y)) + half + 1, len(y))
    return (sums[high] - sums[low]) / (high - low)
