"""The trials of a search, the best first, and how much each parameter mattered."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

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
