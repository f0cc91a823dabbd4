"""One look for every figure, and files whose bytes depend on the data alone."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.textpath import TextPath
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator
from numpy.typing import NDArray

from cmcore.numbers import size

# Okabe and Ito's colours, which stay apart for colour-blind readers; the pale yellow is left out.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
QUIET = "#666666"
WIDTH = 5.0  # inches; narrow, so that the text stays readable on a phone
STYLE: Any = {  # matplotlib types every key on its own
    "font.family": "DejaVu Sans",  # comes with matplotlib, so it is the same everywhere
    "font.size": 10.0,
    "axes.titlesize": 10.0,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e4e4e4",
    "grid.linewidth": 0.7,
    "lines.linewidth": 1.6,
    "lines.markersize": 5.5,
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
    "figure.dpi": 100.0,
    "svg.hashsalt": "cmcore",
    "svg.fonttype": "path",
    "path.simplify": True,
}


@contextmanager
def style() -> Iterator[None]:
    """Matplotlib's defaults with the house style, whatever the machine's own matplotlibrc says."""
    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update(STYLE)
        yield


def save(figure: Figure, folder: Path, name: str) -> tuple[Path, Path]:
    """Write <name>.png and <name>.svg without dates or versions."""
    folder.mkdir(parents=True, exist_ok=True)
    png, svg = folder / f"{name}.png", folder / f"{name}.svg"
    with style():
        figure.savefig(png, dpi=160, metadata={"Software": None})
        figure.savefig(svg, metadata={"Date": None, "Creator": None})
    return png, svg


def colour(index: int) -> str:
    """The colour of the run at this place; markers tell apart what colours repeat."""
    return COLOURS[index % len(COLOURS)]


def marker(index: int) -> str:
    """The marker of the run at this place: a different order from the colours, so that the pairs repeat late."""
    return MARKERS[(index + index // len(COLOURS)) % len(MARKERS)]


def apart(values: Sequence[float], gap: float) -> NDArray[np.float64]:
    """Positions near `values` that keep their order and are at least `gap` apart, moved as little as a sweep allows."""
    order = np.argsort(values, kind="stable")
    placed = np.asarray(values, dtype=np.float64)[order]
    merged: list[list[float]] = []
    for position in placed:
        merged.append([float(position)])
        while len(merged) > 1 and _edge(merged[-1], gap, -1) - _edge(merged[-2], gap, 1) < gap:
            last = merged.pop()
            merged[-1] = merged[-1] + last
    spread = [_edge(group, gap, -1) + gap * index for group in merged for index in range(len(group))]
    result = np.empty(len(placed))
    result[order] = spread
    return result


def _edge(group: Sequence[float], gap: float, side: int) -> float:
    """Lowest (side -1) or highest (side 1) place of a group that is spread evenly around its mean."""
    return float(np.mean(group)) + side * gap * (len(group) - 1) / 2


def margin(labels: Sequence[str]) -> float:
    """The share of the width that labels take at the right."""
    size = STYLE["font.size"]
    inches = [TextPath((0, 0), text, size=size).get_extents().width / 72 for text in labels if text]
    return (0.2 + max(inches, default=0)) / WIDTH


def label_ends(axes: Axes, ends: Sequence[tuple[float, float, str, str]]) -> None:
    """Write each label (x, y, text, colour) right of the axes at its line's end, pushed apart where they would touch.

    A thin leader runs from the end of the line to the label, so that no legend is needed.
    """
    if not ends:
        return
    height = axes.get_window_extent().height / axes.figure.dpi  # inches
    gap = 12.5 / 72 / height  # one line of text, as a fraction of the axes
    to_axes = axes.transData + axes.transAxes.inverted()
    spots = np.array([to_axes.transform((x, y)) for x, y, _, _ in ends])
    heights = apart(spots[:, 1].tolist(), gap)
    order = np.argsort(heights, kind="stable")
    floor = gap / 2 + gap * np.arange(len(heights))  # the lowest labels may not leave the axes, nor push the others
    heights[order] = np.maximum(heights[order], floor)
    for (x, y, text, shade), place in zip(ends, heights, strict=True):
        axes.annotate(
            text,
            xy=(x, y),
            xytext=(1.04, place),
            textcoords="axes fraction",
            color=shade,
            va="center",
            annotation_clip=False,
            arrowprops={"arrowstyle": "-", "color": shade, "linewidth": 0.6, "alpha": 0.5, "shrinkA": 1, "shrinkB": 4},
        )


def canvas(images: NDArray[np.uint8], columns: int, side: int = 64, gap: float = 0.06) -> NDArray[np.uint8]:
    """Images (N, C, H, W) side by side, each enlarged by a whole factor to about `side` pixels: (H', W', 3)."""
    _, C, H, W = images.shape
    factor = max(1, round(side / max(H, W)))
    large = images[:columns].repeat(factor, axis=2).repeat(factor, axis=3)
    if C == 1:
        large = large.repeat(3, axis=1)
    space = max(1, round(gap * H * factor))
    row = np.full((H * factor + space, columns * (W * factor + space) - space, 3), 255, dtype=np.uint8)
    for place, image in enumerate(large):
        left = place * (W * factor + space)
        row[: H * factor, left : left + W * factor] = image.transpose(1, 2, 0)
    return row


def plain_log(axes: Axes) -> None:
    """Plain numbers on a logarithmic y axis, at 1, 2 and 5 where it covers less than two decades."""
    low, high = axes.get_ylim()
    subs = (1.0, 2.0, 5.0) if high / low < 300 else (1.0,)
    if high / low < 6:
        subs = (1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0)
    axes.yaxis.set_major_locator(LogLocator(subs=subs, numticks=12))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.set_ylim(low, high)


def thousands(value: float, _: int) -> str:
    """A tick of an axis of images: 50 k, 2 M."""
    return size(value, gap=" ", digits=6)
