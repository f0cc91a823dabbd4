"""The papers' numbers: `published.yaml`, read strictly. Quoted, never measured here; every one names its source."""

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

from cmcore.config import ConfigError, load_yaml, merge, read, require

FILE = Path(__file__).with_name("published.yaml")
DATASETS = {  # the names of their workloads
    "cifar10": "CIFAR-10",
    "imagenet64": "ImageNet 64",
    "lsun_bedroom256": "LSUN Bedroom 256",
    "lsun_cat256": "LSUN Cat 256",
    "imagenet256": "ImageNet 256",
    "imagenet512": "ImageNet 512",
}


@dataclass(frozen=True, kw_only=True)
class Source:
    """A paper or a repository."""

    title: str
    arxiv: str = ""
    repository: str = ""

    def __post_init__(self) -> None:
        require(bool(self.title), "title", "a title", self.title)
        require(bool(self.arxiv or self.repository), "arxiv", "an arXiv identifier or a repository", self.arxiv)
        digits = self.arxiv.replace(".", "", 1)
        require(not self.arxiv or (len(self.arxiv) == 10 and digits.isdigit()), "arxiv", "NNNN.NNNNN", self.arxiv)

    @property
    def cite(self) -> str:
        """Short citation."""
        return f"arXiv {self.arxiv}" if self.arxiv else self.repository


@dataclass(frozen=True, kw_only=True)
class Row:
    """A line of `published.yaml`: one model, at one or more numbers of function evaluations."""

    dataset: Literal["cifar10", "imagenet64", "lsun_bedroom256", "lsun_cat256", "imagenet256", "imagenet512"]
    source: str
    method: str
    label: str
    init: str
    known: Literal["paper", "repository", "secondary", "from memory, unverified"]
    nfe: tuple[int, ...]
    value: tuple[str, ...]  # text, so that a number keeps the digits it was published with
    metric: Literal["FID", "FD-DINOv2"] = "FID"
    table: str = ""
    read_in: str = ""
    images: int = 0
    conditional: bool = False
    adversarial: bool = False
    by: str = ""
    headline: bool = False
    run: str = ""  # of the data set's own workload: the run that has this row's settings
    note: str = ""

    def __post_init__(self) -> None:
        for key in ("source", "method", "label", "init"):
            require(bool(getattr(self, key)), key, "a non-empty text", getattr(self, key))
        require(len(self.nfe) == len(self.value) > 0, "value", f"one value for each of {len(self.nfe)} nfe", self.value)
        for index, (nfe, value) in enumerate(zip(self.nfe, self.value, strict=True)):
            require(nfe >= 0, f"nfe[{index}]", "0 (not stated) or more", nfe)
            plain = re.fullmatch(r"[0-9]+(\.[0-9]+)?", value) is not None and float(value) > 0
            require(plain, f"value[{index}]", "a positive decimal number as text", value)
        require(self.images >= 0, "images", "0 (not stated) or more", self.images)
        require(self.known != "secondary" or bool(self.read_in), "read_in", "where a secondary number was read", "")


@dataclass(frozen=True, kw_only=True)
class Number:
    """One published value. `nfe` and `images` are 0 where the source does not state them."""

    row: Row
    source: Source
    nfe: int
    text: str  # as published

    @property
    def value(self) -> float:
        """The value as a number."""
        return float(self.text)

    @property
    def cite(self) -> str:
        """The source in full: paper, table, and the text that it was read in if not there."""
        place = f"{self.source.cite}, {self.row.table}" if self.row.table else self.source.cite
        return f"{place} (read in {self.row.read_in})" if self.row.read_in else place


@cache
def titles(path: Path = FILE, of: str = "titles") -> Mapping[str, str]:
    """Names of methods as their authors write them, or of runs (`run_titles`); a ConfigError where one is no text."""
    found = load_yaml(path).get(of, {})
    for name, title in found.items():
        require(isinstance(title, str) and bool(title), f"{of}.{name}", "a non-empty text", title)
    return found


@cache
def unranked(path: Path = FILE) -> tuple[str, ...]:
    """Methods that descend the distance that tables rank by; a ConfigError where this is no list of texts."""
    found = load_yaml(path).get("unranked", [])
    listed = isinstance(found, list) and all(isinstance(name, str) for name in found)
    require(listed, "unranked", "a list of methods", found)
    return tuple(found)


@cache
def families(path: Path = FILE) -> Mapping[str, str]:
    """The family of each method, in the order of the file; a ConfigError where they are no lists, or a name repeats."""
    found: dict[str, str] = {}
    for family, methods in load_yaml(path).get("families", {}).items():
        listed = isinstance(methods, list) and all(isinstance(name, str) and name not in found for name in methods)
        require(listed, f"families.{family}", "a list of methods that no other family has", methods)
        found |= dict.fromkeys(methods, family)
    return found


def published(path: Path = FILE) -> tuple[Number, ...]:
    """All published numbers, in the order of the file.

    Raises:
        ConfigError: something is unknown, missing, of the wrong type, without a source, or stands twice.
    """
    data = load_yaml(path)
    _keys(data, {"sources", "groups"}, str(path))
    sources = {key: read(Source, value, f"sources.{key}") for key, value in data["sources"].items()}
    numbers = tuple(number for index, group in enumerate(data["groups"]) for number in _group(group, sources, index))
    _refuse_repeats(numbers)
    return numbers


def counterpart(
    numbers: Sequence[Number], dataset: str, *, workload: str, run: str, method: str, nfe: int
) -> Number | None:
    """The published FID beside which a run of ours stands, or None.

    In the workload of the data set itself this is the row that names the run, or for a run named like its method the
    headline; elsewhere the headline of the method.
    """
    rows = [n for n in numbers if n.row.dataset == dataset and n.row.metric == "FID"]
    heads = [n for n in rows if n.row.headline and n.row.method == method and n.nfe == nfe]
    if workload != dataset:
        return next(iter(heads), None)
    own = [n for n in rows if n.row.run == run]
    if own:
        return next((n for n in own if n.nfe in (nfe, 0)), None)
    return next(iter(heads), None) if run == method else None


def _keys(data: Mapping[str, Any], expected: set[str], path: str) -> None:
    if set(data) - {"titles", "run_titles", "unranked", "families"} != expected:
        raise ConfigError(path, f"expected the keys {sorted(expected)}, got {sorted(data)}")


def _group(group: Mapping[str, Any], sources: Mapping[str, Source], index: int) -> Iterator[Number]:
    path = f"groups[{index}]"
    if not isinstance(group, Mapping) or not isinstance(group.get("rows"), list) or not group["rows"]:
        raise ConfigError(f"{path}.rows", "expected a list of at least one row")
    shared = {key: value for key, value in group.items() if key != "rows"}
    for position, data in enumerate(group["rows"]):
        row = read(Row, merge(shared, data), f"{path}.rows[{position}]")
        if row.source not in sources:
            known = ", ".join(sources)
            raise ConfigError(f"{path}.rows[{position}].source", f"expected one of {known}, got {row.source!r}")
        for nfe, value in zip(row.nfe, row.value, strict=True):
            yield Number(row=row, source=sources[row.source], nfe=nfe, text=value)


def _refuse_repeats(numbers: tuple[Number, ...]) -> None:
    keys = ("dataset", "metric", "label", "conditional", "source", "by")
    count = Counter((*(getattr(n.row, key) for key in keys), n.nfe) for n in numbers)
    heads = Counter((n.row.dataset, n.row.method, n.nfe) for n in numbers if n.row.headline)
    runs = Counter((n.row.dataset, n.row.run, n.row.metric, n.nfe) for n in numbers if n.row.run)
    for name, counter in (("number", count), ("headline", heads), ("run", runs)):
        if again := [key for key, times in counter.items() if times > 1]:
            raise ConfigError("groups", f"the same {name} stands more than once: {again[0]}")
