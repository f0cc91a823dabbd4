"""Figures of a search: every trial as a line through its values, and which parameter matters."""

import math
from collections.abc import Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from cmcore.numbers import short
from cmcore.report.importance import LEAST, Axis
from cmcore.report.plots import QUIET, WIDTH, colour, style
from cmcore.report.searches import FINISHED, SearchResult, TrialResult


def parallel(search: SearchResult, axes: Sequence[Axis]) -> Figure:
    """A line per trial through its values to its score; grey ones were stopped, the best one is bold."""
    titles = [*(axis.path.rpartition(".")[2] for axis in axes), "fd"]
    finals = np.array([trial.final for trial in search.trials if trial.final > 0] or [1.0])
    low, high = float(finals.min()), float(finals.max())

    def height(trial: TrialResult) -> float:
        return math.log(trial.final / low) / math.log(high / low) if high > low else 0.5

    with style():
        figure = Figure(figsize=(WIDTH, 3.2))
        panel = figure.add_axes((0.1, 0.17, 0.8, 0.7))
        _frame(panel, titles, [*((a.low, a.high) for a in axes), (low, high)])
        shades = mpl.colormaps["viridis"]
        for place, trial in reversed(list(enumerate(search.trials))):
            if not trial.final > 0:
                continue
            over, first = trial.outcome == FINISHED, place == 0
            line = [*(axis.of(trial) for axis in axes), height(trial)]
            panel.plot(
                range(len(line)),
                line,
                color=colour(1) if first else shades(0.9 * height(trial)) if over else "#cccccc",
                linewidth=2.4 if first else 1.0,
                alpha=1.0 if first or not over else 0.7,
                zorder=3 if first else 2 if over else 1,
            )
    return figure


def _frame(axes: Axes, titles: Sequence[str], ends: Sequence[tuple[Any, Any]]) -> None:
    """Upright axes, one per parameter, with the ends of its range below and above."""
    axes.set_axis_off()
    axes.set_xlim(-0.02, len(titles) - 0.98)
    axes.set_ylim(-0.02, 1.02)
    for place, (name, (low, high)) in enumerate(zip(titles, ends, strict=True)):
        axes.plot([place, place], [0, 1], color=QUIET, linewidth=0.8)
        for value, y, offset, side in ((low, 0, -4, "top"), (high, 1, 4, "bottom")):
            axes.annotate(
                short(value), (place, y), (0, offset), textcoords="offset points", ha="center", va=side, fontsize=8
            )
        axes.annotate(
            name, (place, 0), (0, -17), textcoords="offset points", ha="center", va="top", fontsize=8, weight="bold"
        )


def importance(search: SearchResult, paths: Sequence[str]) -> Figure:
    """Bars of `importances`: one per parameter for the first rung, and one for the last that has enough trials."""
    found = search.importance
    shown = [images for images in (min(found, default=0), max(found, default=0)) if images in found]
    shown = list(dict.fromkeys(shown))
    height = 1.3 + 0.42 * len(paths)
    with style():
        figure = Figure(figsize=(WIDTH, height))
        axes = figure.subplots()
        figure.subplots_adjust(0.34, 0.6 / height, 0.96, 1 - 0.55 / height)
        thick = 0.8 / max(len(shown), 1)
        for place, images in enumerate(shown):
            y = np.arange(len(paths)) + (place - (len(shown) - 1) / 2) * thick
            count = sum(images in trial.scores for trial in search.trials)
            label = f"after {images:,} images ({count} trials)"
            axes.barh(y, [found[images][path] for path in paths], thick, color=colour(place), label=label)
        axes.set_yticks(range(len(paths)), [path.rpartition(".")[2] for path in paths])
        axes.invert_yaxis()
        axes.set_xlim(0, 1)
        axes.grid(visible=False, axis="y")
        axes.set_xlabel("share of the variance of ln fd explained")
        if shown:
            axes.legend(loc="lower left", bbox_to_anchor=(0.0, 1.0), fontsize=8, frameon=False)
        else:
            axes.set_title(f"fewer than {LEAST} trials", fontsize=9)
    return figure
