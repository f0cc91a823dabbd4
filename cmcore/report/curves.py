"""Quality curves. Each takes runs and returns a matplotlib figure, or None where there is nothing to show."""

import math
from collections.abc import Callable, Collection, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from cmcore.evaluate.records import MetricRecord
from cmcore.report.captions import BASELINES, is_ranked, run_title
from cmcore.report.headline import leaders
from cmcore.report.plots import QUIET, WIDTH, colour, label_ends, margin, marker, plain_log, style, thousands
from cmcore.report.readers import RunReport
from cmcore.report.seeds import pooled, values

LABEL_HEIGHT = 12.5 / 72  # inches of a line of labels
MOST = 10  # lines that a reader tells apart; of more, the best are named and the others are pale
PALE = "#c4c4c4"
Curve = list[tuple[float, float, float]]  # x, value, spread


def quality_by_nfe(
    runs: Sequence[RunReport], baselines: Sequence[MetricRecord] = (), best: Collection[str] = ()
) -> Figure | None:
    """Frechet distance against the number of function evaluations, both logarithmic: a line per run.

    A run with several samplers shows the least distance that it reaches with at most so many evaluations. Of many
    runs, the best are named: by default its `leaders`.
    """
    curves = [(index, run, curve) for index, run in enumerate(runs) if (curve := _best_curve(pooled(run)))]
    if not curves:
        return None
    named = (best or leaders(runs)) if len(curves) > MOST else {run.facts.run for run in runs}
    shown = [(index, run, curve) for index, run, curve in curves if run.facts.run in named]
    with style():
        figure, axes = _single([run_title(run) for _, run, _ in shown])
        _log(axes, "number of function evaluations (NFE)", _fd_name(runs))
        for _, run, curve in curves:
            if run.facts.run not in named:
                x, y, _ = zip(*curve, strict=True)
                axes.plot(x, y, color=PALE, marker=".", linewidth=1, zorder=1)
        ends = []
        for index, run, curve in shown:
            x, y, spread = zip(*curve, strict=True)
            line = "-" if is_ranked(run) else ":"
            bars = _bars(y, spread)
            axes.errorbar(x, y, yerr=bars, color=colour(index), marker=marker(index), capsize=2, linestyle=line)
            ends.append((x[-1], y[-1], run_title(run), colour(index)))
        ticks = sorted({point[0] for _, _, curve in curves for point in curve})
        axes.set_xlim(min(ticks) * 0.85, max(ticks) * 1.18)
        _baseline(axes, baselines)
        axes.set_xticks(ticks, _spread_ticks(ticks))
        axes.xaxis.set_minor_locator(NullLocator())
        plain_log(axes)
        label_ends(axes, ends)
    return figure


def _best_curve(run: RunReport) -> Curve:
    """The run's points over NFE; of several samplers, those that are better than all cheaper ones."""
    curve = _curve(run.records, lambda record: record.provenance.nfe)
    if len({record.provenance.sampler for record in run.records if record.key == "fd"}) < 2:
        return curve
    return [point for place, point in enumerate(curve) if all(point[1] < cheaper[1] for cheaper in curve[:place])]


def one_step_by_seed(runs: Sequence[RunReport]) -> Figure | None:
    """One-step Frechet distance of every training seed: points per run, the best run first, a bar at the mean."""
    points = [
        (float(np.mean(list(by_seed.values()))), index, run, list(by_seed.values()))
        for index, run in enumerate(runs)
        for (row, metric), by_seed in values(run).items()
        if row[0] == 1 and metric == "fd"
    ]
    if not points or not any(run.replicates for run in runs):
        return None
    points.sort(key=lambda point: point[0])
    height = 0.75 + 0.2 * len(points)
    with style():
        figure = Figure(figsize=(WIDTH, height))
        left = margin([run_title(run) for _, _, run, _ in points])
        axes = figure.add_axes((left, 0.5 / height, 0.97 - left, 1 - 0.6 / height))
        axes.set_xscale("log")
        axes.set_xlabel(f"one-step {_fd_name(runs)}")
        for place, (mean, index, _, x) in enumerate(points):
            axes.plot(x, [place] * len(x), color=colour(index), marker="o", linestyle="none", alpha=0.6)
            axes.plot([mean] * 2, [place - 0.35, place + 0.35], color=colour(index), linewidth=2)
        axes.set_yticks(range(len(points)), [run_title(run) for _, _, run, _ in points], fontsize=8.5)
        axes.set_ylim(len(points) - 0.4, -0.6)
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    return figure


def quality_by_images(runs: Sequence[RunReport], baselines: Sequence[MetricRecord] = ()) -> Figure | None:
    """Frechet distance of snapshots against training images seen: a panel for each number of function evaluations."""
    steps = sorted({r.provenance.nfe for run in runs for r in run.snapshots if r.key == "fd"})
    if not steps:
        return None
    with style():
        named = {nfe: _least(runs, nfe) for nfe in steps}
        shown = [[run_title(run) for run in runs if run.facts.run in named[nfe]] for nfe in steps]
        each = max(2.5, LABEL_HEIGHT * max(map(len, shown)) + 0.45)  # inches of a panel with its title
        height = 0.55 + each * len(steps)
        figure = Figure(figsize=(WIDTH, height))
        panels = np.atleast_1d(figure.subplots(len(steps), sharex=True))
        right = min(0.8, 1 - margin([label for labels in shown for label in labels]))
        figure.subplots_adjust(0.13, 0.48 / height, right, 1 - 0.3 / height, hspace=0.24)
        for axes, nfe in zip(panels, steps, strict=True):
            _images_panel(axes, runs, nfe, named[nfe])
            axes.set_ylabel("fd")
            _baseline(axes, baselines)
        panels[-1].set_xlabel("training images seen")
        for axes, nfe in zip(panels, steps, strict=True):
            plain_log(axes)
            label_ends(axes, _ends(runs, nfe, named[nfe]))
    return figure


def _least(runs: Sequence[RunReport], nfe: int) -> set[str]:
    """The runs whose last snapshots are best, at most `MOST`."""
    held = [(curve[-1][1], run.facts.run) for run in runs if (curve := _snapshots(run, nfe))]
    return {name for _, name in sorted(held)[:MOST]}


def _images_panel(axes: Axes, runs: Sequence[RunReport], nfe: int, named: Collection[str]) -> None:
    axes.set_yscale("log")
    axes.set_title(f"{_fd_name(runs)}, {nfe} NFE", fontsize=9)
    axes.xaxis.set_major_formatter(FuncFormatter(thousands))
    axes.xaxis.set_major_locator(MaxNLocator(5))
    for index, run in enumerate(runs):
        if curve := _snapshots(run, nfe):
            x, y, _ = zip(*curve, strict=True)
            if run.facts.run in named:
                axes.plot(x, y, color=colour(index), marker=marker(index))
            else:
                axes.plot(x, y, color=PALE, marker=".", linewidth=1, zorder=1)


def _ends(runs: Sequence[RunReport], nfe: int, named: Collection[str]) -> list[tuple[float, float, str, str]]:
    curves = [(index, run, _snapshots(run, nfe)) for index, run in enumerate(runs) if run.facts.run in named]
    return [(curve[-1][0], curve[-1][1], run_title(run), colour(index)) for index, run, curve in curves if curve]


def _snapshots(run: RunReport, nfe: int) -> Curve:
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


def _curve(records: Sequence[MetricRecord], at: Callable[[MetricRecord], float]) -> Curve:
    return sorted((float(at(record)), record.value, record.spread) for record in records if record.key == "fd")


def _fd_name(runs: Sequence[RunReport]) -> str:
    return next((r.name for run in runs for r in run.records if r.key == "fd"), "fd")


def _single(labels: Sequence[str] = ()) -> tuple[Figure, Axes]:
    """A figure with room for labels at its right: as high as their lines, and as wide as the longest."""
    height = max(3.9, LABEL_HEIGHT * len(labels) / 0.8)
    figure = Figure(figsize=(WIDTH, height))
    axes = figure.add_axes((0.13, 0.53 / height, min(0.66, 0.87 - margin(labels)), 1 - 0.78 / height))
    return figure, axes


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
