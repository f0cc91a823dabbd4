"""One look for every figure, and files whose bytes depend on the data alone."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

# Okabe and Ito's colours, which stay apart for colour-blind readers; the pale yellow is left out.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
QUIET = "#666666"
WIDTH = 5.6  # inches; narrow, so that the text stays readable on a phone
STYLE = {
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
    groups = [[position] for position in placed]
    merged: list[list[float]] = []
    for group in groups:
        merged.append(list(group))
        while len(merged) > 1 and _low(merged[-1], gap) - _high(merged[-2], gap) < gap:
            last = merged.pop()
            merged[-1] = merged[-1] + last
    spread = [_low(group, gap) + gap * index for group in merged for index in range(len(group))]
    result = np.empty(len(placed))
    result[order] = spread
    return result


def _low(group: Sequence[float], gap: float) -> float:
    return float(np.mean(group)) - gap * (len(group) - 1) / 2


def _high(group: Sequence[float], gap: float) -> float:
    return float(np.mean(group)) + gap * (len(group) - 1) / 2


def label_ends(axes: Axes, ends: Sequence[tuple[float, float, str, str]]) -> None:
    """Write each label (x, y, text, colour) to the right of the axes, at its line's end, pushed apart where they would touch.

    A thin leader runs from the end of the line to the label, so that no legend is needed.
    """
    if not ends:
        return
    figure = axes.figure
    height = axes.get_position().height * figure.get_size_inches()[1]
    gap = 12.5 / 72 / height  # one line of text, as a fraction of the axes
    to_axes = axes.transData + axes.transAxes.inverted()
    spots = np.array([to_axes.transform((x, y)) for x, y, _, _ in ends])
    heights = apart(spots[:, 1].tolist(), gap)
    heights += max(0.0, gap / 2 - heights.min()) - max(0.0, heights.max() - 1)
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
    """One row of images (N, C, H, W) side by side, each enlarged by a whole factor to about `side` pixels; (H', W', 3)."""
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
