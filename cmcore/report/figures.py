"""The figures of a report. Each takes runs and returns a matplotlib figure, or None where there is nothing to show."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from cmcore.evaluate.records import MetricRecord
from cmcore.report.captions import BASELINES, run_title
from cmcore.report.plots import QUIET, WIDTH, canvas, colour, label_ends, marker, style
from cmcore.report.readers import Images, RunReport


def samples(runs: Sequence[RunReport], columns: int = 10) -> Figure | None:
    """Rows are methods and numbers of function evaluations, columns are the same noise; the teacher's end points come first."""
    rows: list[tuple[str, Images]] = []
    endpoints = next((run.endpoints for run in runs if run.endpoints is not None), None)
    if endpoints is not None:
        rows.append(("teacher's ODE\nend point", endpoints))
    for run in runs:
        rows += [(f"{run_title(run)}\n{nfe} NFE", images) for nfe, images in (run.samples or {}).items()]
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
            axes.annotate(label, (0, middle), (-6, 0), textcoords="offset points", ha="right", va="center", fontsize=8.5)
    return figure


def _padded(band: np.ndarray, width: int) -> np.ndarray:
    return np.pad(band, ((0, 0), (0, width - band.shape[1]), (0, 0)), constant_values=255)


def quality_by_nfe(runs: Sequence[RunReport], baselines: Sequence[MetricRecord] = ()) -> Figure | None:
    """Frechet distance against the number of function evaluations, both logarithmic."""
    curves = [_curve(run.records, lambda record: record.provenance.nfe) for run in runs]
    if not any(curves):
        return None
    with style():
        figure, axes = _single()
        _log(axes, "number of function evaluations (NFE)", _fd_name(runs))
        ends = []
        for index, (run, curve) in enumerate(zip(runs, curves, strict=True)):
            if curve:
                x, y, spread = zip(*curve, strict=True)
                axes.errorbar(x, y, yerr=_bars(y, spread), color=colour(index), marker=marker(index), capsize=2)
                ends.append((x[-1], y[-1], run_title(run), colour(index)))
        ticks = sorted({point[0] for curve in curves for point in curve})
        axes.set_xlim(min(ticks) * 0.85, max(ticks) * 1.18)
        _baseline(axes, baselines)
        axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.minorticks_off()
        _plain_log(axes)
        label_ends(axes, ends)
    return figure


def quality_by_images(runs: Sequence[RunReport], baselines: Sequence[MetricRecord] = ()) -> Figure | None:
    """Frechet distance of snapshots against training images seen: a panel for each number of function evaluations."""
    steps = sorted({r.provenance.nfe for run in runs for r in run.snapshots if r.metric == "fd"})
    if not steps:
        return None
    with style():
        figure = Figure(figsize=(WIDTH, 0.55 + 2.5 * len(steps)))
        panels = np.atleast_1d(figure.subplots(len(steps), sharex=True))
        figure.subplots_adjust(0.13, 0.48 / (0.55 + 2.5 * len(steps)), 0.8, 1 - 0.3 / (0.55 + 2.5 * len(steps)), hspace=0.24)
        for axes, nfe in zip(panels, steps, strict=True):
            _images_panel(axes, runs, nfe)
            axes.set_ylabel("fd")
            _baseline(axes, baselines)
        panels[-1].set_xlabel("training images seen")
        for axes, nfe in zip(panels, steps, strict=True):
            _plain_log(axes)
            label_ends(axes, _ends(axes, runs, nfe))
    return figure


def _images_panel(axes: Axes, runs: Sequence[RunReport], nfe: int) -> None:
    axes.set_yscale("log")
    axes.set_title(f"{nfe} NFE" if nfe != 1 else "one step (1 NFE)")
    axes.xaxis.set_major_formatter(FuncFormatter(_thousands))
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
                _plain_log(axes)
            axes.set_title(run_title(run), color=colour(index))
            axes.tick_params(labelsize=8)
            axes.xaxis.set_major_formatter(FuncFormatter(_thousands))
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


def level_scan(runs: Sequence[RunReport]) -> Figure | None:
    """Two-step distance against the noise level of the second step; a ring marks the least, a dotted line the one-step distance."""
    curves = [_curve(run.scan, lambda record: record.provenance.levels[1]) for run in runs]
    if not any(curves):
        return None
    with style():
        figure, axes = _single()
        _log(axes, "noise level σ of the second step", f"two-step {_fd_name(runs)}")
        ends = []
        for index, (run, curve) in enumerate(zip(runs, curves, strict=True)):
            if not curve:
                continue
            x, y, spread = zip(*curve, strict=True)
            axes.errorbar(x, y, yerr=_bars(y, spread), color=colour(index), marker=marker(index), markersize=4, capsize=2)
            least = int(np.argmin(y))
            axes.plot(x[least], y[least], "o", markersize=12, markerfacecolor="none", markeredgecolor=colour(index))
            ends.append((x[-1], y[-1], run_title(run), colour(index)))
            for one in (r for r in run.records if r.metric == "fd" and r.provenance.nfe == 1):
                axes.axhline(one.value, color=colour(index), linestyle=":", linewidth=1)
        ticks = sorted({point[0] for curve in curves for point in curve})
        axes.set_xlim(ticks[0] * 0.85, ticks[-1] * 1.18)
        axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.xaxis.set_minor_formatter(NullFormatter())
        _plain_log(axes)
        label_ends(axes, ends)
    return figure


def _curve(records: Sequence[MetricRecord], at) -> list[tuple[float, float, float]]:  # noqa: ANN001
    return sorted((float(at(record)), record.value, record.spread) for record in records if record.metric == "fd")


def _fd_name(runs: Sequence[RunReport]) -> str:
    return next((r.name for run in runs for r in run.records if r.metric == "fd"), "fd")


def _single() -> tuple[Figure, Axes]:
    figure = Figure(figsize=(WIDTH, 3.9))
    axes = figure.add_axes((0.13, 0.135, 0.66, 0.83))
    return figure, axes


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
        if record.metric == "fd":
            name = BASELINES.get(record.provenance.run, record.provenance.run)
            axes.axhline(record.value, color=QUIET, linestyle="--", linewidth=1)
            axes.annotate(
                name, (0.99, record.value), (0, 3), xycoords=("axes fraction", "data"), textcoords="offset points",
                ha="right", va="bottom", color=QUIET, fontsize=8.5,
            )  # fmt: skip


def _plain_log(axes: Axes) -> None:
    """Plain numbers on a logarithmic y axis, at 1, 2 and 5 where it covers less than two decades."""
    low, high = axes.get_ylim()
    subs = (1.0, 2.0, 5.0) if high / low < 300 else (1.0,)
    if high / low < 6:
        subs = (1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0)
    axes.yaxis.set_major_locator(LogLocator(subs=subs, numticks=12))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.set_ylim(low, high)


def _thousands(value: float, _: int) -> str:
    if value >= 1e6:
        return f"{value / 1e6:g} M"
    return f"{value / 1e3:g} k" if value else "0"
