"""The importance of each parameter of a search."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cmcore.report.searches import TrialResult

LEAST = 6  # trials at a rung from which a parabola says something


@dataclass(frozen=True)
class Axis:
    """A searched parameter: its dotted path, and what stands at both ends of its range."""

    path: str
    low: Any
    high: Any
    position: Callable[[Any], float]  # of a value in the range, from 0 to 1, in the scale of the search

    def of(self, trial: TrialResult) -> float:
        """The position of a trial's value."""
        return self.position(trial.values[self.path])


def importances(trials: Sequence[TrialResult], axes: Sequence[Axis]) -> dict[int, dict[str, float]]:
    """The share of the variance of ln(score) that a parabola in one parameter explains, at rungs with enough trials.

    It is the adjusted R^2, which does not reward a parabola for its freedom: 0 stands for nothing.

    Returns:
        Images seen -> path of the parameter -> share.
    """
    found: dict[int, dict[str, float]] = {}
    for images in sorted({images for trial in trials for images in trial.scores}):
        scored = [trial for trial in trials if trial.scores.get(images, 0) > 0]
        if len(scored) >= LEAST:
            y = np.log([trial.scores[images] for trial in scored])
            found[images] = {
                axis.path: round(explained(np.array([axis.of(trial) for trial in scored]), y), 4) for axis in axes
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
