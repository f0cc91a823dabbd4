"""Foreign sample sets in the report: images of any generator, measured like the rows of the runs."""

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from cmcore.config import read, require
from cmcore.evaluate.records import NO_EXTRACTOR, RunMetrics
from cmcore.report.captions import FOREIGN
from cmcore.report.cells import Cell, Column, Table, count
from cmcore.report.readers import ReportError, RunReport, read_json

# What no table, page or spreadsheet takes for markup, a link or a formula.
NAME = re.compile(r"[^\W_][\w .,+()-]{0,59}")
NOT_STATED = "not stated"
SCORED = "scored"  # the folder of these files, in the reports of a workload


@dataclass(frozen=True, kw_only=True)
class SampleSet:
    """Samples as they were given, with what their giver said of them."""

    name: str
    kind: Literal["folder", "archive", "array"]
    digest: str  # SHA-256 of the file; of a folder, over the names and contents of its files
    count: int  # images in it
    measured: int  # of them
    nfe: int = 0  # number of function evaluations, as it was said; 0: it was not
    classes: Literal["", "reference", "uniform"] = (
        ""  # of conditional samples: as frequent as in the data, or all alike
    )

    def __post_init__(self) -> None:
        check_name(self.name)
        require(re.fullmatch(r"[0-9a-f]{64}", self.digest) is not None, "digest", "64 hexadecimal digits", self.digest)
        require(0 < self.measured <= self.count, "measured", f"1 to {self.count} (count)", self.measured)
        require(self.nfe >= 0, "nfe", "0 or more", self.nfe)


class Foreign(NamedTuple):
    """A sample set, and its rows in the form of a run's."""

    samples: SampleSet
    run: RunReport


def check_name(name: str) -> None:
    """A ConfigError of the field `name` for one that is not plain text of one line."""
    wanted = "1 to 60 letters, digits, spaces and _ . , + - ( ), the first of them a letter or a digit"
    require(NAME.fullmatch(name) is not None and name == name.strip(), "name", wanted, name)


def file_of(folder: Path, name: str) -> Path:
    """The file of a sample set: different names have different files."""
    plain = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
    return folder / f"{plain or 'samples'}-{hashlib.sha256(name.encode()).hexdigest()[:8]}.json"


def to_json(samples: SampleSet, metrics: RunMetrics) -> dict[str, Any]:
    """The content of the file."""
    return {"samples": asdict(samples), "metrics": metrics.to_json()}


def read_foreign(folder: Path | None, workload: str) -> list[Foreign]:
    """All sample sets that were scored, by their names.

    Raises:
        ReportError: a file is malformed, or not where it belongs.
    """
    files = sorted(folder.glob("*.json")) if folder is not None else []
    return sorted((_read(path, workload) for path in files), key=lambda one: one.samples.name)


def _read(path: Path, workload: str) -> Foreign:
    found = read_json(path, _parse)
    name, facts = found.samples.name, found.run.facts
    if path != file_of(path.parent, name) or facts.workload != workload:
        wanted = f"the samples {name!r} of workload {workload!r} in {file_of(path.parent, name).name}"
        raise ReportError(f"{path}: expected {wanted}, got those of workload {facts.workload!r}")
    return found


def _parse(data: Any) -> Foreign:
    if not isinstance(data, Mapping) or set(data) != {"samples", "metrics"}:
        raise ValueError("expected the keys 'samples' and 'metrics'")
    samples, metrics = read(SampleSet, data["samples"], "samples"), RunMetrics.from_json(data["metrics"])
    sources = [record.provenance for record in metrics.records]
    said = {(p.run, p.method, p.fingerprint, p.nfe) for p in sources} | {
        (metrics.facts.run, metrics.facts.method, samples.digest, samples.nfe)
    }
    if said != {(samples.name, FOREIGN, samples.digest, samples.nfe)}:
        raise ValueError(f"expected records of the samples {samples.name!r} alone")
    return Foreign(samples, RunReport(**vars(metrics)))


def comparable(foreign: Sequence[Foreign], runs: Sequence[RunReport]) -> list[Foreign]:
    """The sets that were measured with the extractors and references of the runs: only these have rows."""
    known: dict[str, tuple[str, str]] = {}
    for run in runs:
        known |= _measured_with(run)
    kept = []
    for one in foreign:
        seen = _measured_with(one.run)
        if all(known.get(key, mark) == mark for key, mark in seen.items()):
            known |= seen
            kept.append(one)
    return kept


def _measured_with(run: RunReport) -> dict[str, tuple[str, str]]:
    """Digests of extractor and reference, by metric."""
    found = ((record.key, record.provenance) for record in run.records)
    return {key: (p.extractor_digest, p.reference_digest) for key, p in found if p.extractor != NO_EXTRACTOR}


def sets(foreign: Sequence[Foreign], shown: Sequence[Foreign]) -> Table:
    """What is known of every sample set; those that are not `shown` were measured against another reference."""
    heads = ("Samples", "Kind", "Images", "Measured", "NFE", "Classes", "SHA-256", "Rows")
    rows = []
    for one in foreign:
        s = one.samples
        state = "shown" if one in shown else "none, as the reference is another one now: score it again"
        texts = (Cell(s.classes or NOT_STATED), Cell(s.digest), Cell(state))
        rows.append((Cell(s.name), Cell(s.kind), count(s.count), count(s.measured), count(s.nfe), *texts))
    columns = tuple(Column(head.lower().replace("-", ""), head) for head in heads)
    text = "Images of other generators, with what was said of them. Nothing vouches for how they were made or chosen."
    return Table("foreign", "Foreign sample sets", columns, tuple(rows), text)
