"""Quality curves. Each takes runs and returns a matplotlib figure, or None where there is nothing to show."""

import math
from collections.abc import Callable, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from cmcore.evaluate.records import MetricRecord
from cmcore.report.captions import BASELINES, run_title
from cmcore.report.plots import QUIET, WIDTH, colour, label_ends, marker, plain_log, style, thousands
from cmcore.report.readers import RunReport
from cmcore.report.seeds import pooled, values

LABEL_HEIGHT, LABEL_WIDTH = 12.5 / 72, 0.075  # inches of a line, and of a character, of a label
LINES = ("-", "--", ":", "-.", (0, (1, 4)))  # of the samplers of a run


def quality_by_nfe(runs: Sequence[RunReport], baselines: Sequence[MetricRecord] = ()) -> Figure | None:
    """Frechet distance against the number of function evaluations, both logarithmic."""
    curves = [
        (index, run_title(run) + (f", {sampler}" if order else ""), LINES[order % len(LINES)], curve)
        for index, run in enumerate(runs)
        for order, (sampler, curve) in enumerate(_curves_by_sampler(pooled(run).records).items())
    ]
    if not curves:
        return None
    with style():
        figure, axes = _single([label for _, label, _, _ in curves])
        _log(axes, "number of function evaluations (NFE)", _fd_name(runs))
        ends = []
        for index, label, line, curve in curves:
            x, y, spread = zip(*curve, strict=True)
            axes.errorbar(
                x, y, yerr=_bars(y, spread), color=colour(index), marker=marker(index), capsize=2, linestyle=line
            )
            ends.append((x[-1], y[-1], label, colour(index)))
        ticks = sorted({point[0] for _, _, _, curve in curves for point in curve})
        axes.set_xlim(min(ticks) * 0.85, max(ticks) * 1.18)
        _baseline(axes, baselines)
        axes.set_xticks(ticks, _spread_ticks(ticks))
        axes.xaxis.set_minor_locator(NullLocator())
        plain_log(axes)
        label_ends(axes, ends)
    return figure


def one_step_by_seed(runs: Sequence[RunReport]) -> Figure | None:
    """One-step Frechet distance of every training seed, a column of points per run; a bar at their mean."""
    found = [(index, run, values(run)) for index, run in enumerate(runs)]
    points = [
        (index, run, list(by_seed.values()))
        for index, run, every in found
        for (row, metric), by_seed in every.items()
        if row[0] == 1 and metric == "fd"
    ]
    if not points or not any(run.replicates for run in runs):
        return None
    with style():
        figure, axes = _single()
        axes.set_yscale("log")
        axes.set_ylabel(f"one-step {_fd_name(runs)}")
        for place, (index, _, y) in enumerate(points):
            x = place + np.linspace(-0.15, 0.15, len(y))
            axes.plot(x, y, color=colour(index), marker=marker(index), linestyle="none")
            axes.plot([place - 0.3, place + 0.3], [np.mean(y)] * 2, color=colour(index))
        axes.set_xticks(range(len(points)), [run_title(run) for _, run, _ in points], rotation=30, ha="right")
        axes.set_xlim(-0.6, len(points) - 0.4)
        plain_log(axes)
    return figure


def quality_by_images(runs: Sequence[RunReport], baselines: Sequence[MetricRecord] = ()) -> Figure | None:
    """Frechet distance of snapshots against training images seen: a panel for each number of function evaluations."""
    steps = sorted({r.provenance.nfe for run in runs for r in run.snapshots if r.key == "fd"})
    if not steps:
        return None
    with style():
        shown = [[run_title(run) for run in runs if _snapshots(run, nfe)] for nfe in steps]
        each = max(2.5, LABEL_HEIGHT * max(map(len, shown)) + 0.45)  # inches of a panel with its title
        height = 0.55 + each * len(steps)
        figure = Figure(figsize=(WIDTH, height))
        panels = np.atleast_1d(figure.subplots(len(steps), sharex=True))
        right = min(0.8, 1 - _margin([label for labels in shown for label in labels]))
        figure.subplots_adjust(0.13, 0.48 / height, right, 1 - 0.3 / height, hspace=0.24)
        for axes, nfe in zip(panels, steps, strict=True):
            _images_panel(axes, runs, nfe)
            axes.set_ylabel("fd")
            _baseline(axes, baselines)
        panels[-1].set_xlabel("training images seen")
        for axes, nfe in zip(panels, steps, strict=True):
            plain_log(axes)
            label_ends(axes, _ends(axes, runs, nfe))
    return figure


def _images_panel(axes: Axes, runs: Sequence[RunReport], nfe: int) -> None:
    axes.set_yscale("log")
    axes.set_title(f"{_fd_name(runs)}, {nfe} NFE", fontsize=9)
    axes.xaxis.set_major_formatter(FuncFormatter(thousands))
    axes.xaxis.set_major_locator(MaxNLocator(5))
    for index, run in enumerate(runs):
        if curve := _snapshots(run, nfe):
            x, y, _ = zip(*curve, strict=True)
            axes.plot(x, y, color=colour(index), marker=marker(index))


def _ends(axes: Axes, runs: Sequence[RunReport], nfe: int) -> list[tuple[float, float, str, str]]:
    curves = [(index, run, _snapshots(run, nfe)) for index, run in enumerate(runs)]
    return [(curve[-1][0], curve[-1][1], run_title(run), colour(index)) for index, run, curve in curves if curve]


def _snapshots(run: RunReport, nfe: int) -> list[tuple[float, float, float]]:
    return _curve([r for r in run.snapshots if r.provenance.nfe == nfe], lambda record: record.provenance.images)


def level_scan(runs: Sequence[RunReport]) -> Figure | None:
    """Two-step distance against the level of the second step; a ring marks the least, a dotted line one step."""
    curves = [_curve(run.scan, lambda record: record.provenance.levels[1]) for run in runs]
    if not any(curves):
        return None
    with style():
        figure, axes = _single([run_title(run) for run, curve in zip(runs, curves, strict=True) if curve])
        _log(axes, "noise level $\\sigma$ of the second step", f"two-step {_fd_name(runs)}")
        ends = []
        for index, (run, curve) in enumerate(zip(runs, curves, strict=True)):
            if not curve:
                continue
            x, y, spread = zip(*curve, strict=True)
            axes.errorbar(
                x, y, yerr=_bars(y, spread), color=colour(index), marker=marker(index), markersize=4, capsize=2
            )
            least = int(np.argmin(y))
            axes.plot(x[least], y[least], "o", markersize=12, markerfacecolor="none", markeredgecolor=colour(index))
            ends.append((x[-1], y[-1], run_title(run), colour(index)))
            for one in (r for r in run.records if r.key == "fd" and r.provenance.nfe == 1):
                axes.axhline(one.value, color=colour(index), linestyle=":", linewidth=1)
        ticks = sorted({point[0] for curve in curves for point in curve})
        axes.set_xlim(ticks[0] * 0.85, ticks[-1] * 1.18)
        axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_title("ring: the least; dotted: one step", fontsize=8.5, fontweight="normal", color=QUIET)
        plain_log(axes)
        label_ends(axes, ends)
    return figure


def _curves_by_sampler(records: Sequence[MetricRecord]) -> dict[str, list[tuple[float, float, float]]]:
    """The points of every sampler, in the order of the records."""
    named: dict[str, list[MetricRecord]] = {}
    for record in records:
        named.setdefault(record.provenance.sampler, []).append(record)
    curves = {sampler: _curve(found, lambda record: record.provenance.nfe) for sampler, found in named.items()}
    return {sampler: curve for sampler, curve in curves.items() if curve}


def _curve(records: Sequence[MetricRecord], at: Callable[[MetricRecord], float]) -> list[tuple[float, float, float]]:
    return sorted((float(at(record)), record.value, record.spread) for record in records if record.key == "fd")


def _fd_name(runs: Sequence[RunReport]) -> str:
    return next((r.name for run in runs for r in run.records if r.key == "fd"), "fd")


def _single(labels: Sequence[str] = ()) -> tuple[Figure, Axes]:
    """A figure with room for labels at its right: as high as their lines, and as wide as the longest."""
    height = max(3.9, LABEL_HEIGHT * len(labels) / 0.8)
    figure = Figure(figsize=(WIDTH, height))
    axes = figure.add_axes((0.13, 0.53 / height, min(0.66, 0.87 - _margin(labels)), 1 - 0.78 / height))
    return figure, axes


def _margin(labels: Sequence[str]) -> float:
    """The share of the width that labels take at the right."""
    return (0.2 + LABEL_WIDTH * max(map(len, labels), default=0)) / WIDTH


def _spread_ticks(ticks: Sequence[float]) -> list[str]:
    """Labels of ascending ticks of a logarithmic axis, empty where one would touch the label before."""
    shown, last = [], 0.0
    for tick in ticks:
        shown.append(f"{tick:g}" if tick >= 1.24 * last else "")
        last = tick if shown[-1] else last
    return shown


def _log(axes: Axes, x: str, y: str) -> None:
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel(x)
    axes.set_ylabel(y)


def _bars(values: Sequence[float], spreads: Sequence[float]) -> list[list[float]]:
    """Error bars that stay on a logarithmic axis."""
    pairs = list(zip(values, spreads, strict=True))
    return [[min(spread, 0.9 * value) for value, spread in pairs], [spread for _, spread in pairs]]


def _baseline(axes: Axes, baselines: Sequence[MetricRecord]) -> None:
    for record in baselines:
        if record.key == "fd":
            name = BASELINES.get(record.provenance.run, record.provenance.run)
            axes.axhline(record.value, color=QUIET, linestyle="--", linewidth=1)
            low = record.value < math.sqrt(math.prod(axes.get_ylim()))  # then there is more room above
            axes.annotate(
                name, (0.99, record.value), (0, 3 if low else -3), xycoords=("axes fraction", "data"),
                textcoords="offset points", ha="right", va="bottom" if low else "top", color=QUIET, fontsize=8.5,
            )  # fmt: skip
