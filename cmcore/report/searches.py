"""What searches left in their folders: trials, the best values, and what they are worth on other seeds."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cmcore.config import merge
from cmcore.report.readers import ReportError, read_json

FINISHED = "finished"  # the outcome of a trial that came to its end


@dataclass(frozen=True)
class Tried:
    """A trial."""

    key: str
    values: Mapping[str, Any]
    scores: Mapping[int, float]  # images seen -> Frechet distance
    outcome: str  # "finished", or why it ended


@dataclass(frozen=True)
class Found:
    """A search, as `write_search` left it in its folder."""

    name: str
    base: str  # the run that was searched
    metric: str  # what a score is, in words
    best: Mapping[str, Any]  # changes to the parameter file
    confirmed: Sequence[Mapping[str, float]]  # per seed: before, after, and whatever else was compared
    importance: Mapping[int, Mapping[str, float]]  # images seen -> parameter -> share of the variance
    trials: Sequence[Tried]  # the best first
    folder: Path
    fingerprint: str = ""

    @property
    def paths(self) -> list[str]:
        """The parameters, in the order of the search."""
        return list(dict.fromkeys(path for trial in self.trials for path in trial.values))

    @property
    def differences(self) -> list[float]:
        """After minus before, per seed: below 0 is better."""
        return [one["after"] - one["before"] for one in self.confirmed]


def read_searches(folder: Path) -> list[Found]:
    """The searches of a workload that have run, by name; a hidden folder is one that is being written.

    Raises:
        ReportError: a file is malformed; the message names it.
    """
    return [_read(file) for file in sorted(folder.glob("[!.]*/trials.json"))]


def _read(file: Path) -> Found:
    data = read_json(file)
    try:
        return Found(
            **{key: str(data[key]) for key in ("name", "base", "metric")},
            best=dict(data["best"]),
            confirmed=[{name: float(value) for name, value in one.items()} for one in data["confirmed"]],
            importance={int(images): dict(shares) for images, shares in data["importance"].items()},
            trials=[
                Tried(
                    str(one["trial"]),
                    dict(one["values"]),
                    {int(images): float(score) for images, score in one["scores"].items()},
                    str(one["outcome"]),
                )
                for one in data["trials"]
            ],
            folder=file.parent,
            fingerprint=str(data.get("fingerprint", "")),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ReportError(f"{file}: expected what a search writes, got {type(error).__name__}: {error}") from error


def adopted(search: Found, entries: Mapping[str, Any]) -> bool:
    """Whether the parameter file holds the values that were found."""
    return merge(entries, search.best.get("runs", {})) == entries
