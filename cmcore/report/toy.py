"""Figures of methods in the plane beside the exact flow. Points are in TrigFlow's scale: noise as wide as data."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import hsv_to_rgb
from matplotlib.figure import Figure
from numpy.typing import NDArray

from cmcore.report.plots import QUIET, colour, marker, plain_log, style

TEMPLATE = Path(__file__).with_name("toy.html")
Points = NDArray[np.float64]
COLUMNS = 6
PANEL = 1.65  # inches
SPAN = 1.35  # of the axes, each way


@dataclass(frozen=True, kw_only=True)
class Drawn:
    """Samples of one sampler from the common noise."""

    name: str
    nfe: int
    ends: Points  # (N, 2)
    paths: NDArray[np.float64]  # (steps + 1, P, 2): the ways of the first P points, from noise on
    map_error: float  # root mean square distance from the exact map's ends
    energy: float  # energy distance from the data


@dataclass(frozen=True, kw_only=True)
class Scene:
    """A data set with its exact flow and all that was learned."""

    data: str
    noise: Points  # (N, 2), of which every panel shows the ends
    density: NDArray[np.float64]  # (G, G) of the data over the axes
    exact: Drawn
    drawn: Sequence[Drawn]  # the first row of every run
    levels: NDArray[np.float64]  # (L,) sigma
    errors: dict[str, NDArray[np.float64]]  # (L,) by run: error of the function along exact trajectories


def hues(noise: Points) -> NDArray[np.float64]:
    """Colours (N, 4): the hue is the direction of the noise; near the middle they are paler."""
    hue = np.arctan2(noise[:, 1], noise[:, 0]) / (2 * np.pi) % 1
    radius = np.clip(np.hypot(noise[:, 0], noise[:, 1]), 0, 1)
    hsv = np.stack([hue, 0.45 + 0.5 * radius, np.full_like(hue, 0.85)], axis=1)
    return np.concatenate([hsv_to_rgb(hsv), np.ones((len(hue), 1))], axis=1)


def panels(scene: Scene) -> Figure:
    """Noise, exact flow, and every method: each point has the colour of the noise that it came from."""
    count = 2 + len(scene.drawn)
    rows = -(-count // COLUMNS)
    with style():
        figure = Figure(figsize=(COLUMNS * PANEL, rows * (PANEL + 0.32)))
        grid = figure.subplots(rows, COLUMNS, squeeze=False)
        figure.subplots_adjust(
            0.005, 0.005, 0.995, 1 - 0.32 / (rows * (PANEL + 0.32)), hspace=0.32 / PANEL, wspace=0.05
        )
        for axes in grid.flat:
            axes.set_axis_off()
        shades = hues(scene.noise)
        first, second, *others = grid.flat
        _panel(first, scene, scene.noise, None, shades, "noise", "each point keeps its colour")
        _panel(second, scene, scene.exact.ends, scene.exact.paths, shades, "exact flow", "along the curves")
        for axes, one in zip(others, scene.drawn, strict=False):
            said = f"{one.nfe} NFE, off by {one.map_error:.2f}"
            _panel(axes, scene, one.ends, one.paths, shades, one.name, said)
    return figure


def _panel(
    axes: Axes, scene: Scene, ends: Points, paths: NDArray[np.float64] | None, shades: Points, title: str, said: str
) -> None:
    box = (-SPAN, SPAN, -SPAN, SPAN)
    axes.imshow(scene.density, cmap="Greys", vmin=0, vmax=4, extent=box, origin="lower", interpolation="bilinear")
    if paths is not None:
        for index in range(paths.shape[1]):
            way = paths[:, index]
            axes.plot(way[:, 0], way[:, 1], color=shades[index], linewidth=0.7, alpha=0.9)
    axes.scatter(ends[:, 0], ends[:, 1], c=shades, s=2.2, linewidths=0)
    axes.set(xlim=(-SPAN, SPAN), ylim=(-SPAN, SPAN), aspect="equal")
    axes.set_title(title, fontsize=9, pad=11)
    axes.text(0, 1.015, said, transform=axes.transAxes, fontsize=7, color=QUIET, va="bottom")


def along(scene: Scene) -> Figure:
    """How far f(x_t, t) is from the exact end, against t, along the exact trajectories."""
    names = sorted(scene.errors, key=lambda name: -scene.errors[name][0])  # as the lines end
    with style():
        figure = Figure(figsize=(COLUMNS * PANEL, 3.8))
        axes = figure.add_axes((0.07, 0.14, 0.74, 0.78))
        for index, name in enumerate(names):
            dashed = name == "edm"
            axes.plot(
                scene.levels, scene.errors[name], color=QUIET if dashed else colour(index), marker=marker(index),
                markersize=3.5, linewidth=1.2, linestyle="--" if dashed else "-",
                label=f"{name}: the denoiser" if dashed else name,
            )  # fmt: skip
        axes.set(xscale="log", yscale="log", xlabel="noise level $\\sigma$", title="RMS distance from the exact end")
        plain_log(axes)
        axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False, fontsize=8.5)
    return figure


def write_png(figure: Figure, path: Path) -> None:
    """The figure as a PNG without date or version: thousands of points are smaller so than as SVG."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with style():
        figure.savefig(path, dpi=170, metadata={"Software": None})


def page(parts: Sequence[Mapping[str, Any]], *, sigma_data: float, provenance: str) -> str:
    """The page; `panels` and `along` of a part are the files of its figures beside the page."""
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    template = environment.from_string(TEMPLATE.read_text(encoding="utf-8"))
    return template.render(parts=parts, sigma_data=sigma_data, provenance=provenance) + "\n"
