"""What a search found: ranked trials, the best values ready to be pasted, and figures of which parameter matters."""

import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import yaml
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from cmcore.report.plots import QUIET, WIDTH, colour, save, style

LEAST = 6  # trials at a rung from which a parabola says something


@dataclass(frozen=True)
class Axis:
    """A searched parameter: its dotted path, and what stands at both ends of its range."""

    path: str
    low: Any
    high: Any


@dataclass(frozen=True)
class Row:
    """A trial."""

    key: str
    values: Mapping[str, Any]
    positions: Mapping[str, float]  # of the values in their ranges, from 0 to 1, in the scale of the search
    scores: Mapping[int, float]  # images seen -> Frechet distance
    outcome: str  # "finished", or why it ended

    @property
    def final(self) -> float:
        """The latest score; nan where there is none."""
        return self.scores[max(self.scores)] if self.scores else math.nan


@dataclass(frozen=True)
class SearchReport:
    """A search with its trials, the best first."""

    name: str
    base: str
    metric: str  # what a score is, in words
    axes: Sequence[Axis]
    rows: Sequence[Row]
    best: Mapping[str, Any]  # changes to the parameter file
    confirmed: Sequence[Mapping[str, float]]  # per seed: before and after
    fingerprint: str = ""  # names the search's folder

    @property
    def best_row(self) -> Row:
        """The best trial."""
        return self.rows[0]


def write_search(search: SearchReport, out: Path) -> list[Path]:
    """Write index.md, trials.json, trials.csv, best.yaml, and the figures parallel and importance, under `out`."""
    out.mkdir(parents=True, exist_ok=True)
    texts = {"trials.json": _json(search), "trials.csv": _csv(search), "best.yaml": _yaml(search)}
    texts["index.md"] = _page(search)
    for name, text in texts.items():
        (out / name).write_text(text, encoding="utf-8")
    figures = {"parallel": parallel(search), "importance": importance_figure(search)}
    drawn = [path for name, figure in figures.items() for path in save(figure, out, name)]
    return [*(out / name for name in texts), *drawn]


def _json(search: SearchReport) -> str:
    data = {
        "name": search.name,
        "base": search.base,
        "fingerprint": search.fingerprint,
        "metric": search.metric,
        "best": search.best,
        "confirmed": [dict(one) for one in search.confirmed],
        "importance": importances(search),
        "trials": [
            {"trial": row.key, "outcome": row.outcome, "values": dict(row.values), "scores": dict(row.scores)}
            for row in search.rows
        ],
    }
    return json.dumps(data, indent=1) + "\n"


def _csv(search: SearchReport) -> str:
    marks, paths = rungs(search), [axis.path for axis in search.axes]
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(["rank", "trial", "outcome", *paths, *(f"fd at {images} images" for images in marks)])
    for rank, row in enumerate(search.rows, start=1):
        values = [row.values.get(path, "") for path in paths]
        writer.writerow([rank, row.key, row.outcome, *values, *(row.scores.get(images, "") for images in marks)])
    return buffer.getvalue()


def _yaml(search: SearchReport) -> str:
    best = search.best_row
    finished = sum(row.outcome == "finished" for row in search.rows)
    lines = [
        f"# The best of the search {search.name!r}: {search.metric} {best.final:.4g} (trial {best.key}).",
        f"# {len(search.rows)} trials, {finished} of which came to their end.",
        *(f"# Seed {one['seed']:g}: {_before_after(one)}" for one in search.confirmed),
        f"# `make adopt NAME={search.name}` writes this into params.yaml.",
    ]
    return "\n".join(lines) + "\n" + yaml.safe_dump(dict(search.best), sort_keys=False)


def _page(search: SearchReport, top: int = 10) -> str:
    """A page for those who browse the repository."""
    paths = [axis.path for axis in search.axes]
    lines = [
        f"# Search `{search.name}` over the run `{search.base}`",
        f"Ranked by {search.metric}: the lower, the better. `make adopt NAME={search.name}` takes the best over.",
        "```yaml\n" + yaml.safe_dump(dict(search.best), sort_keys=False) + "```",
    ]
    if search.confirmed:
        names = [name for name in search.confirmed[0] if name != "seed"]
        lines.append(
            "On seeds that the search did not use:\n\n"
            + _table(["seed", *names], [[one["seed"], *(f"{one[n]:.4g}" for n in names)] for one in search.confirmed])
        )
    rows = [
        [
            rank,
            *(_short(row.values[path]) for path in paths),
            f"{row.final:.4g}",
            max(row.scores, default=0),
            row.outcome,
        ]
        for rank, row in enumerate(search.rows[:top], start=1)
    ]
    lines.append(
        f"The best {len(rows)} of {len(search.rows)} trials (all: [trials.csv](trials.csv)):\n\n"
        + _table(["rank", *paths, "fd", "images", "end"], rows)
    )
    lines.append("![Each line is a trial; the bold one is the best, grey ones were stopped.](parallel.png)")
    lines.append("![How much of the variance of ln fd a parabola in each parameter explains.](importance.png)")
    return "\n\n".join(lines) + "\n"


def _table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in lines)


def _before_after(one: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {value:.4g}" for name, value in one.items() if name != "seed")


def rungs(search: SearchReport) -> list[int]:
    """The moments at which trials were measured."""
    return sorted({images for row in search.rows for images in row.scores})


def importances(search: SearchReport) -> dict[int, dict[str, float]]:
    """How much of the variance of ln(score) a parabola in one parameter explains, at every rung with enough trials.

    It is the adjusted R^2, which does not reward a parabola for its freedom: 0 stands for nothing.
    """
    found: dict[int, dict[str, float]] = {}
    for images in rungs(search):
        rows = [row for row in search.rows if images in row.scores and row.scores[images] > 0]
        if len(rows) >= LEAST:
            y = np.log([row.scores[images] for row in rows])
            found[images] = {
                axis.path: round(explained(np.array([row.positions[axis.path] for row in rows]), y), 4)
                for axis in search.axes
            }
    return found


def explained(x: NDArray[np.float64], y: NDArray[np.float64]) -> float:
    """Adjusted R^2, at least 0, of the parabola in x that is nearest to y."""
    spread = float(((y - y.mean()) ** 2).sum())
    degree = min(2, len(np.unique(x)) - 1)
    if spread == 0 or degree < 1:
        return 0.0
    left = float(((y - np.polyval(np.polyfit(x, y, degree), x)) ** 2).sum())
    return max(0.0, 1 - left / spread * (len(y) - 1) / (len(y) - degree - 1))


def parallel(search: SearchReport) -> Figure:
    """A line per trial through its values to its score; grey ones were stopped, the best one is bold."""
    titles = [*(axis.path.rpartition(".")[2] for axis in search.axes), "fd"]
    finals = np.array([row.final for row in search.rows if row.scores and row.final > 0] or [1.0])
    low, high = float(finals.min()), float(finals.max())

    def height(row: Row) -> float:
        return math.log(row.final / low) / math.log(high / low) if high > low else 0.5

    with style():
        figure = Figure(figsize=(WIDTH, 3.2))
        axes = figure.add_axes((0.1, 0.17, 0.8, 0.7))
        _frame(axes, titles, [*((a.low, a.high) for a in search.axes), (low, high)])
        shades = mpl.colormaps["viridis"]
        for place, row in reversed(list(enumerate(search.rows))):
            if not row.scores or not row.final > 0:
                continue
            over, first = row.outcome == "finished", place == 0
            line = [*(row.positions[axis.path] for axis in search.axes), height(row)]
            axes.plot(
                range(len(line)),
                line,
                color=colour(1) if first else shades(0.9 * height(row)) if over else "#cccccc",
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
                _short(value), (place, y), (0, offset), textcoords="offset points", ha="center", va=side, fontsize=8
            )
        axes.annotate(
            name, (place, 0), (0, -17), textcoords="offset points", ha="center", va="top", fontsize=8, weight="bold"
        )


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def importance_figure(search: SearchReport) -> Figure:
    """Bars of `importances`: one per parameter for the first rung, and one for the last that has enough trials."""
    found = importances(search)
    shown = [images for images in (min(found, default=0), max(found, default=0)) if images in found]
    shown = list(dict.fromkeys(shown))
    paths = [axis.path for axis in search.axes]
    height = 1.3 + 0.42 * len(paths)
    with style():
        figure = Figure(figsize=(WIDTH, height))
        axes = figure.subplots()
        figure.subplots_adjust(0.34, 0.6 / height, 0.96, 1 - 0.55 / height)
        thick = 0.8 / max(len(shown), 1)
        for place, images in enumerate(shown):
            y = np.arange(len(paths)) + (place - (len(shown) - 1) / 2) * thick
            count = sum(images in row.scores for row in search.rows)
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
