"""The record of a search, as its folder holds it: trials, the best values, and their worth on other seeds."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cmcore.config import merge
from cmcore.report.readers import read_json
from cmcore.report.seeds import p_value

FILE = "trials.json"
FINISHED = "finished"  # the outcome of a trial that came to its end
ENOUGH = 5  # seeds of a comparison from which something is concluded


@dataclass(frozen=True)
class TrialResult:
    """A trial."""

    key: str
    values: Mapping[str, Any]
    scores: Mapping[int, float]  # images seen -> Frechet distance
    outcome: str  # "finished", or why it ended

    @property
    def final(self) -> float:
        """The latest score; nan where there is none."""
        return self.scores[max(self.scores)] if self.scores else math.nan


@dataclass(frozen=True)
class SearchResult:
    """The content of trials.json."""

    name: str
    base: str  # the run that was searched
    metric: str  # what a score is, in words
    best: Mapping[str, Any]  # changes to the parameter file
    confirmed: Sequence[Mapping[str, float]]  # per seed: before, after, and whatever else was compared
    importance: Mapping[int, Mapping[str, float]]  # images seen -> parameter -> share of the variance
    trials: Sequence[TrialResult]  # the best first
    fingerprint: str = ""  # names the folder of the search's trials
    folder: Path = Path()  # that it was read from; not in the file

    @property
    def paths(self) -> list[str]:
        """The parameters, in the order of the search."""
        return list(dict.fromkeys(path for trial in self.trials for path in trial.values))

    @property
    def rungs(self) -> list[int]:
        """The moments at which trials were measured, in images seen."""
        return sorted({images for trial in self.trials for images in trial.scores})

    @property
    def differences(self) -> list[float]:
        """After minus before, per seed: below 0 is better."""
        return [one["after"] - one["before"] for one in self.confirmed]

    @property
    def p_value(self) -> float:
        """Of a paired t-test of no difference between before and after; nan for fewer than two seeds."""
        before, after = ({int(one["seed"]): one[name] for one in self.confirmed} for name in ("before", "after"))
        return p_value(before, after)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON data."""
        trials = [
            {"trial": one.key, "outcome": one.outcome, "values": dict(one.values), "scores": dict(one.scores)}
            for one in self.trials
        ]
        return {
            **{key: getattr(self, key) for key in ("name", "base", "fingerprint", "metric", "best")},
            "confirmed": [dict(one) for one in self.confirmed],
            "importance": self.importance,
            "trials": trials,
        }

    @classmethod
    def from_json(cls, data: Any) -> "SearchResult":
        """A search from `to_json`'s data; a ValueError where it is none."""
        try:
            return cls(
                name=str(data["name"]),
                base=str(data["base"]),
                metric=str(data["metric"]),
                best=dict(data["best"]),
                confirmed=[{name: _number(value) for name, value in one.items()} for one in data["confirmed"]],
                importance={int(images): dict(shares) for images, shares in data["importance"].items()},
                trials=[
                    TrialResult(
                        str(one["trial"]),
                        dict(one["values"]),
                        {int(images): float(score) for images, score in one["scores"].items()},
                        str(one["outcome"]),
                    )
                    for one in data["trials"]
                ],
                fingerprint=str(data.get("fingerprint", "")),
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ValueError(f"expected what a search writes, got {type(error).__name__}: {error}") from error


def _number(value: Any) -> float:
    """The value as it is: a seed stays a whole number."""
    return value if isinstance(value, int) else float(value)


def read_searches(folder: Path) -> list[SearchResult]:
    """The searches of a workload that have run, by name; a hidden folder is one that is being written.

    Raises:
        ReportError: a file is malformed; the message names it.
    """
    files = sorted(folder.glob(f"[!.]*/{FILE}"))
    return [replace(read_json(file, SearchResult.from_json), folder=file.parent) for file in files]


def adopted(search: SearchResult, entries: Mapping[str, Any]) -> bool:
    """Whether the parameter file holds the values that were found."""
    return merge(entries, search.best.get("runs", {})) == entries
