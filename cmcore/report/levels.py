"""The figure of a search for noise levels."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure

from cmcore.report.plots import QUIET, WIDTH, colour, marker, style


def level_search(
    run: str, tried: Mapping[tuple[float, ...], float], best: Sequence[tuple[float, ...]], one_step: float
) -> Figure:
    """Distance against the level of the last step, a line for each number of steps, with the levels above it kept.

    A ring marks the least of each, a dotted line one step.
    """
    with style():
        figure = Figure(figsize=(WIDTH, 3.2))
        axes = figure.add_axes((0.13, 0.15, 0.84, 0.74))
        axes.axhline(one_step, color=QUIET, linestyle=":", linewidth=1, label="1 step")
        for index, chosen in enumerate(best):
            rows = sorted((levels[-1], value) for levels, value in tried.items() if levels[:-1] == chosen[:-1])
            x, y = np.array(rows).T
            axes.plot(x, y, color=colour(index), marker=marker(index), markersize=4, label=f"{len(chosen) + 1} steps")
            axes.plot(
                chosen[-1], tried[chosen], "o", markersize=12, markerfacecolor="none", markeredgecolor=colour(index)
            )
        axes.set(xscale="log", xlabel="noise level $\\sigma$ of the last step", ylabel="Frechet distance")
        axes.set_title(run)
        axes.legend(frameon=False)
    return figure
