"""The space of a search: the entries of `tune`, and the values that they allow."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from cmcore.config import ConfigError, join, require

KINDS = ("uniform", "loguniform", "quniform", "choice")
POSTHOC_STD = "std"  # the one dimension of a post-hoc search
DIGITS = 4  # significant digits of a value that is tried: what is found can be pasted as it was tried


@dataclass(frozen=True)
class Dimension:
    """One parameter of a search: {uniform|loguniform: [low, high]}, {quniform: [low, high, step]} or {choice: [...]}.

    Bounds that are whole numbers, as in [10, 40], mean that all values are; write [10.0, 40.0] for others.
    """

    path: str  # below the run's entry, such as "options.q"
    kind: str
    values: tuple[Any, ...]

    @property
    def low(self) -> Any:
        """The smallest value, or the first choice."""
        return self.values[0]

    @property
    def high(self) -> Any:
        """The largest value, or the last choice."""
        return self.values[-1] if self.kind == "choice" else self.values[1]

    @property
    def extremes(self) -> tuple[Any, ...]:
        """Values such that all others are right if these are."""
        return self.values if self.kind == "choice" else self.values[:2]

    @property
    def whole(self) -> bool:
        """Whether all values are whole numbers."""
        return self.kind != "choice" and all(type(value) is int for value in self.values)

    @property
    def log(self) -> bool:
        """Whether ratios count, and not differences."""
        return self.kind == "loguniform"

    def clean(self, value: Any) -> Any:
        """The allowed value nearest to `value`, in few digits."""
        if self.kind == "choice":
            return value
        if self.kind == "quniform":
            value = self.low + round((value - self.low) / self.values[2]) * self.values[2]
        value = min(max(value, self.low), self.high)
        return round(value) if self.whole else float(f"{value:.{DIGITS}g}")

    def allows(self, value: Any) -> bool:
        """Whether anything at all is a value of the dimension."""
        if self.kind == "choice":
            return any(type(value) is type(one) and value == one for one in self.values)
        number = type(value) in (int, float) and self.low <= value <= self.high
        return number and self.clean(value) == value

    def position(self, value: Any) -> float:
        """Where a value lies between the lowest, 0, and the highest, 1."""
        if self.kind == "choice":
            return self.values.index(value) / max(len(self.values) - 1, 1)
        low, high, at = (math.log(x) if self.log else x for x in (self.low, self.high, value))
        return (at - low) / (high - low)


def dimensions(space: Mapping[str, Any], path: str = "") -> Iterator[Dimension]:
    """The dimensions of a space, whose mappings are nested like those of a run's entry.

    Args:
        space: the mapping.
        path: where it stands.

    Yields:
        One dimension per leaf.

    Raises:
        ConfigError: a leaf is none of the four kinds.
    """
    for key, value in space.items():
        here = join(path, str(key))
        if not isinstance(value, Mapping) or not value:
            raise ConfigError(here, f"expected one of {', '.join(KINDS)} with a list, got {value!r}")
        kind = next(iter(value))
        if kind in KINDS:
            yield _dimension(here, kind, value)
        else:
            yield from dimensions(value, here)


def _dimension(path: str, kind: str, entry: Mapping[str, Any]) -> Dimension:
    values = entry[kind]
    if len(entry) > 1:
        raise ConfigError(path, f"expected one of {', '.join(KINDS)}, got {', '.join(map(str, entry))}")
    here = join(path, kind)
    if not isinstance(values, list) or not values:
        raise ConfigError(here, f"expected a list, got {values!r}")
    if kind == "choice":
        scalars = all(isinstance(value, (int, float, str)) for value in values)
        if not scalars or len(set(values)) != len(values):
            raise ConfigError(here, f"expected different numbers, texts or true and false, got {values!r}")
    else:
        wanted = 3 if kind == "quniform" else 2
        numbers = all(type(value) in (int, float) and abs(value) < 1e15 for value in values)
        if not numbers or len(values) != wanted or not values[0] < values[1]:
            form = "low, high, step" if wanted == 3 else "low, high"
            raise ConfigError(here, f"expected [{form}], rising numbers, got {values!r}")
        if kind == "loguniform" and values[0] <= 0:
            raise ConfigError(here, f"expected bounds above 0, got {values!r}")
        if kind == "quniform" and not 0 < values[2] <= values[1] - values[0]:
            raise ConfigError(here, f"expected a step between 0 and the range, got {values!r}")
    # A decay near 1 or a half-life over decades is found in ratios; in differences, nearly all tries are alike.
    if path.endswith("half_life") and kind not in ("loguniform", "choice"):
        raise ConfigError(path, f"expected loguniform or choice for a half-life, got {kind}")
    return Dimension(path, kind, tuple(values))


def flat(values: Mapping[str, Any], path: str = "") -> dict[str, Any]:
    """{"a.b": value} for {"a": {"b": value}}."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        here = join(path, str(key))
        found |= flat(value, here) if isinstance(value, Mapping) else {here: value}
    return found


def nested(path: str, value: Any) -> dict[str, Any]:
    """{"a": {"b": value}} for "a.b"."""
    for key in reversed(path.split(".")):
        value = {key: value}
    return value


@dataclass(frozen=True, kw_only=True)
class TuneConfig:
    """One search. A trial is the run `base` with some values replaced, trained on `images` images.

    With a smaller budget than the run's own everything that is counted in images (warm-ups, half-lives, curricula)
    shrinks with it; what the search reports is in terms of the full run.
    """

    base: str  # the run that is searched
    init: str  # as in that run: said again, as DVC draws its edges from here
    teacher: str  # likewise
    kind: Literal["train", "posthoc"] = "train"  # posthoc: train once, then try EMA profiles of the width `std`
    space: dict[str, Any]  # nested like a run's entry; for posthoc {std: {loguniform: [low, high]}}
    start: tuple[dict[str, Any], ...] = ()  # points that are tried first, nested like `space`: what is known to be good
    nfe: Literal[1, 2] = 1  # ranked by the Frechet distance of samples with so many function evaluations
    samples: int = 2000  # of each measurement
    images: int = 0  # budget of a trial; 0 for the images of the run itself
    trials: int = 20
    concurrency: int = 1  # trials at a time
    threads: int = 1  # of each trial
    searcher: Literal["optuna", "random"] = "optuna"
    scheduler: Literal["asha", "hyperband", "pbt", "none"] = "asha"
    rungs: int = 2  # moments at which trials are compared: images * reduction^-k, k = rungs - 1, ..., 0
    reduction: int = 2  # one in so many goes on from rung to rung
    seed: int = 1001  # of the searcher, of the trials' training and of their samples
    stds: tuple[float, float] = (0.05, 0.1)  # posthoc: widths of the two profiles that are stored
    snapshots: int = 16  # posthoc: how often they are stored
    confirm: tuple[int, ...] = ()  # seeds on which the run is trained as it is and with what was found

    def __post_init__(self) -> None:
        for key in ("trials", "concurrency", "threads", "rungs"):
            require(1 <= getattr(self, key) <= 10**6, key, "between 1 and a million", getattr(self, key))
        require(2 <= self.reduction <= 8, "reduction", "between 2 and 8", self.reduction)
        require(self.parts <= 512, "rungs", "at most 512 = reduction^(rungs - 1)", f"{self.reduction}^{self.rungs - 1}")
        require(self.images >= 0, "images", "at least 0", self.images)
        require(self.samples >= 2, "samples", "at least 2", self.samples)
        require(2 <= self.snapshots <= 512, "snapshots", "between 2 and 512", self.snapshots)
        for index, std in enumerate(self.stds):
            require(0 < std < 0.28, f"stds[{index}]", "a width between 0 and 0.28", std)
        require(self.stds[0] != self.stds[1], "stds", "two different widths", self.stds)
        require(self.seed not in self.confirm, "confirm", "seeds that the search did not use", self.confirm)
        require(len(set(self.confirm)) == len(self.confirm), "confirm", "different seeds", self.confirm)
        require(len(self.space) > 0, "space", "at least one parameter", self.space)
        try:
            paths = [dimension.path for dimension in self.dimensions]
        except ConfigError as error:
            raise ConfigError(join("space", error.path), error.message) from error
        for index, point in enumerate(map(flat, self.start)):
            here = f"start[{index}]"
            require(point.keys() == set(paths), here, f"values of {', '.join(paths)}", ", ".join(point))
            for dimension in self.dimensions:
                value = point[dimension.path]
                require(dimension.allows(value), f"{here}.{dimension.path}", "a value of the space", value)
        require(not self.start or self.searcher == "optuna", "searcher", "optuna, which can `start`", self.searcher)
        require(len(self.start) <= self.trials, "start", "at most as many points as trials", len(self.start))
        if self.kind == "posthoc":
            require(paths == [POSTHOC_STD], "space", f"{POSTHOC_STD} alone for a post-hoc search", paths)
            for bound in self.dimensions[0].extremes:
                number = type(bound) in (int, float)
                require(number and 0 < bound < 0.28, "space.std", "widths between 0 and 0.28", bound)
        if self.scheduler == "pbt":
            optuna = self.searcher == "random"
            require(optuna, "searcher", "random for pbt, which changes the values itself", self.searcher)

    @property
    def dimensions(self) -> list[Dimension]:
        """The space, flat."""
        return list(dimensions(self.space))

    @property
    def parts(self) -> int:
        """Equal parts of the training; rungs are at the ends of some."""
        return self.reduction ** min(self.rungs - 1, 100)

    @property
    def marks(self) -> list[int]:
        """The parts at whose end a trial is measured: all for PBT, which wants them equidistant, else one per rung."""
        if self.scheduler == "pbt":
            return list(range(1, self.parts + 1))
        return [self.reduction**k for k in range(self.rungs)]
