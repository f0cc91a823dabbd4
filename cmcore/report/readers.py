"""What the report reads: records of runs, their training histories and samples, and the records of the reference."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cmcore.config import ConfigError, read
from cmcore.evaluate.records import MetricRecord, from_json
from cmcore.train.took import Took

Images = NDArray[np.uint8]  # (N, C, H, W)


class ReportError(ValueError):
    """A file that the report needs is missing, malformed, or contradicts another one."""


@dataclass(frozen=True, kw_only=True)
class RunFacts:
    """The head of `metrics/<run>.json`: what was trained."""

    workload: str
    run: str
    method: str
    init: str  # the run it starts from, or "random"
    parameters: int  # trainable scalars of the network
    images: int  # training images seen by this run, without those of `init`
    ema: str
    seed: int  # of the training run
    conditional: bool = False
    fid_absent: str = ""  # why there is no Inception FID; empty where there is one
    left_out: str = ""  # which other metrics are missing, and why
    decoder: str = ""  # digest of what decoded the samples; empty where they were images


@dataclass(frozen=True, kw_only=True)
class RunReport:
    """Everything that the report shows of one run."""

    facts: RunFacts
    records: tuple[MetricRecord, ...]  # of the final weights, per number of function evaluations
    scan: tuple[MetricRecord, ...] = ()  # two-step sampling at other levels
    snapshots: tuple[MetricRecord, ...] = ()  # of the weights on the way
    history: tuple[Mapping[str, Any], ...] = ()  # lines of history.jsonl
    samples: Mapping[str, Images] | None = None  # by row, all runs from the same noise
    took: Took | None = None  # how long the training took, where that is known
    endpoints: Images | None = None  # the teacher's probability-flow end points from that noise


@dataclass(frozen=True, kw_only=True)
class ReferenceFacts:
    """What `reference.json` says: records of baselines that are no run, and how good the feature extractor is."""

    baselines: tuple[MetricRecord, ...] = ()
    kind: str = ""  # "classifier" or "random"
    accuracy: Mapping[str, float] = field(default_factory=dict)
    halves: float = 0.0  # Frechet distance between two halves of the reference images; 0 where not measured


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """Where the files of a workload are. `order` lists runs as the parameter file does; others follow by name."""

    workload: str
    metrics: Path  # folder of <run>.json
    reference: Path | None = None  # reference.json
    runs: Path | None = None  # folder of <run>/history.jsonl
    samples: Path | None = None  # folder of <run>.npz
    times: Path | None = None  # folder of <run>.json
    order: tuple[str, ...] = ()
    data: str = ""  # the data in words, for captions


def read_runs(inputs: Inputs) -> tuple[RunReport, ...]:
    """All runs of a workload, in the order of the parameter file.

    Raises:
        ReportError: there is none, or a file is malformed; the message names it.
    """
    files = sorted(inputs.metrics.glob("*.json"))
    if not files:
        raise ReportError(
            f"{inputs.metrics}: expected metrics files <run>.json, got none; run the evaluate stage first"
        )
    rank = {name: place for place, name in enumerate(inputs.order)}
    files.sort(key=lambda file: (rank.get(file.stem, len(rank)), file.stem))
    return tuple(_run(file, inputs) for file in files)


def read_reference(path: Path | None) -> ReferenceFacts:
    """The baselines and what is known of the feature extractor; empty without the file."""
    if path is None or not path.exists():
        return ReferenceFacts()
    data = read_json(path)
    extractor = data.get("extractor", {})
    accuracy = extractor.get("accuracy") or {}
    return ReferenceFacts(
        baselines=_records(data, "baseline", path),
        kind=str(extractor.get("kind", "")),
        accuracy={str(key): value for key, value in accuracy.items()},
        halves=float(data.get("halves", 0.0)),
    )


def _run(path: Path, inputs: Inputs) -> RunReport:
    data = read_json(path)
    lists = ("records", "scan", "snapshots")
    try:
        facts = read(RunFacts, {key: value for key, value in data.items() if key not in lists})
    except ConfigError as error:
        raise ReportError(f"{path}: {error}") from error
    if (facts.run, facts.workload) != (path.stem, inputs.workload):
        expected = f"run {path.stem!r} of workload {inputs.workload!r}"
        raise ReportError(f"{path}: expected {expected}, got run {facts.run!r} of workload {facts.workload!r}")
    records, scan, snapshots = (_records(data, key, path) for key in lists)
    if not records:
        raise ReportError(f"{path}: expected at least one record, got none")
    samples, endpoints = _samples(inputs.samples / f"{facts.run}.npz" if inputs.samples else None)
    return RunReport(
        facts=facts,
        records=records,
        scan=scan,
        snapshots=snapshots,
        history=_history(inputs.runs / facts.run / "history.jsonl" if inputs.runs else None),
        samples=samples,
        took=_took(inputs.times / f"{facts.run}.json" if inputs.times else None),
        endpoints=endpoints,
    )


def read_json(path: Path) -> dict[str, Any]:
    """A JSON file that holds a mapping; a ReportError names it where it does not."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ReportError(f"{path}: expected a JSON file, got: {error}") from error
    if not isinstance(data, dict):
        raise ReportError(f"{path}: expected a mapping, got {type(data).__name__}")
    return data


def _records(data: Mapping[str, Any], key: str, path: Path) -> tuple[MetricRecord, ...]:
    try:
        return tuple(from_json(item) for item in data.get(key, ()))
    except (ValueError, TypeError, AttributeError) as error:
        raise ReportError(f"{path}: {key}: {error}") from error


def _took(path: Path | None) -> Took | None:
    if path is None or not path.exists():
        return None
    try:
        return read(Took, read_json(path))
    except ConfigError as error:
        raise ReportError(f"{path}: {error}") from error


def _history(path: Path | None) -> tuple[dict[str, Any], ...]:
    if path is None or not path.exists():
        return ()
    try:
        lines = tuple(json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip())
    except ValueError as error:
        raise ReportError(f"{path}: expected one JSON object per line, got: {error}") from error
    if any("images" not in line or "loss" not in line for line in lines):
        raise ReportError(f"{path}: expected the keys 'images' and 'loss' in every line")
    return lines


def _samples(path: Path | None) -> tuple[dict[str, Images] | None, Images | None]:
    """Images by row, "<n> NFE", and of a distilled run the teacher's end points: uint8 (N, C, H, W)."""
    if path is None or not path.exists():
        return None, None
    found: dict[tuple[int, str], Images] = {}
    endpoints = None
    with np.load(path, allow_pickle=False) as arrays:
        for name in sorted(arrays.files):
            match = re.fullmatch(r"nfe_(\d+)(?:_(.+))?|endpoints", name)
            array = arrays[name]
            if not match or array.dtype != np.uint8 or array.ndim != 4 or array.shape[1] not in (1, 3):
                raise ReportError(
                    f"{path}: {name}: expected uint8 (N, 1 or 3, H, W) named nfe_<n> or endpoints, got {array.shape}"
                )
            if match.group(1):
                found[int(match.group(1)), match.group(2) or ""] = array
            else:
                endpoints = array
    named = {f"{nfe} NFE" + (f", {sampler}" if sampler else ""): found[nfe, sampler] for nfe, sampler in sorted(found)}
    return named, endpoints
