"""Input files of the report: metrics of runs, their training histories and samples, and the reference."""

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from cmcore.closure import UNKNOWN
from cmcore.config import read
from cmcore.evaluate.records import ReferenceFacts, RunMetrics
from cmcore.evaluate.timing import SamplingTimes
from cmcore.tracking import jsonl
from cmcore.train.timing import TrainingTime

T = TypeVar("T")
Images = NDArray[np.uint8]  # (N, C, H, W)


class ReportError(ValueError):
    """A file that the report needs is missing, malformed, or contradicts another one."""


@dataclass(frozen=True, kw_only=True)
class RunReport(RunMetrics):
    """Everything that the report shows of one run."""

    history: tuple[Mapping[str, Any], ...] = ()  # lines of history.jsonl
    samples: Mapping[str, Images] | None = None  # by row, all runs from the same noise
    time: TrainingTime | None = None  # of the training, where it is known
    endpoints: Images | None = None  # the teacher's probability-flow end points from that noise
    nearest: Mapping[str, Images] | None = None  # by row, the nearest training image of every sample
    sampling: SamplingTimes | None = None  # of the rows, where it is known
    told: tuple[str, ...] = ()  # the captions of the samples of each row, where the run reads captions

    @property
    def trained_by(self) -> str:
        """The git commit of the code that trained it; "" where that was not done here."""
        if not self.facts.images:
            return ""
        return (self.time.code if self.time else "") or UNKNOWN

    @property
    def evaluated_by(self) -> str:
        """The git commit of the code that sampled and measured it."""
        return self.sampling.code if self.sampling else UNKNOWN


@dataclass(frozen=True, kw_only=True)
class Operations:
    """Floating-point operations, of which a multiply-add counts 2."""

    training: float  # of all images of the run; 0 where its weights come from a file
    evaluation: float  # of the network, of one image


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """Places of the files of a workload. `order` names the runs of the parameter file; without it all count."""

    workload: str
    metrics: Path  # folder of <run>.json
    reference: Path | None = None  # reference.json
    runs: Path | None = None  # folder of <run>/history.jsonl
    samples: Path | None = None  # folder of <run>.npz
    times: Path | None = None  # folder of <run>.json
    sampling: Path | None = None  # folder of <run>.json
    scored: Path | None = None  # folder of foreign sample sets
    edits: Path | None = None  # folder of zero-shot edits
    order: tuple[str, ...] = ()
    data: str = ""  # the data in words, for captions
    seconds: float = 0.0  # length of the sound that an image is (cmcore/data/mel.py); 0: images are no sounds
    operations: Mapping[str, Operations] = field(default_factory=dict)  # of each run, where they are known
    ablations: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  # comparisons of variants: title -> runs


def read_runs(inputs: Inputs) -> tuple[RunReport, ...]:
    """The runs of a workload that the parameter file has, in its order: others may have been measured in other ways.

    Raises:
        ReportError: there is none, or a file is malformed; the message names it.
    """
    rank = {name: place for place, name in enumerate(inputs.order)}
    files = sorted(file for file in inputs.metrics.glob("*.json") if not rank or file.stem in rank)
    if not files:
        raise ReportError(
            f"{inputs.metrics}: expected metrics files <run>.json, got none; run the evaluate stage first"
        )
    files.sort(key=lambda file: rank.get(file.stem, 0))
    return tuple(_run(file, inputs) for file in files)


def read_reference(path: Path | None) -> ReferenceFacts | None:
    """The reference of a workload; None without the file."""
    return _read_if_there(path, ReferenceFacts.from_json)


def _run(path: Path, inputs: Inputs) -> RunReport:
    metrics = read_json(path, RunMetrics.from_json)
    facts = metrics.facts
    if (facts.run, facts.workload) != (path.stem, inputs.workload):
        expected = f"run {path.stem!r} of workload {inputs.workload!r}"
        raise ReportError(f"{path}: expected {expected}, got run {facts.run!r} of workload {facts.workload!r}")
    samples, endpoints, nearest, told = _samples(inputs.samples / f"{facts.run}.npz" if inputs.samples else None)
    return RunReport(
        **vars(metrics),
        history=_history(inputs.runs / facts.run / "history.jsonl" if inputs.runs else None),
        samples=samples,
        time=_read_if_there(inputs.times and inputs.times / f"{facts.run}.json", partial(read, TrainingTime)),
        endpoints=endpoints,
        nearest=nearest,
        sampling=_read_if_there(inputs.sampling and inputs.sampling / f"{facts.run}.json", SamplingTimes.from_json),
        told=told,
    )


def read_json(path: Path, parse: Callable[[Any], T]) -> T:
    """The record in a JSON file, from its data; a ReportError names the file where it is none."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ReportError(f"{path}: expected a JSON file, got: {error}") from error
    try:
        return parse(data)
    except ValueError as error:
        raise ReportError(f"{path}: {error}") from error


def _read_if_there(path: Path | None, parse: Callable[[Any], T]) -> T | None:
    return read_json(path, parse) if path is not None and path.exists() else None


def _history(path: Path | None) -> tuple[dict[str, Any], ...]:
    if path is None or not path.exists():
        return ()
    try:
        lines = tuple(jsonl.read(path))
    except ValueError as error:
        raise ReportError(f"{path}: expected one JSON object per line, got: {error}") from error
    if any("images" not in line or "loss" not in line for line in lines):
        raise ReportError(f"{path}: expected the keys 'images' and 'loss' in every line")
    return lines


def _samples(
    path: Path | None,
) -> tuple[dict[str, Images] | None, Images | None, dict[str, Images] | None, tuple[str, ...]]:
    """Images by row, "<n> NFE"; of a distilled run the teacher's end points; nearest training images by row; captions.

    All images are uint8 (N, C, H, W).
    """
    if path is None or not path.exists():
        return None, None, None, ()
    found: dict[tuple[int, str], Images] = {}
    nearest: dict[tuple[int, str], Images] = {}
    endpoints, told = None, ()
    with np.load(path, allow_pickle=False) as arrays:
        for name in sorted(arrays.files):
            match = re.fullmatch(r"(nearest_)?nfe_(\d+)(?:_(.+))?|endpoints|told", name)
            array = arrays[name]
            if name == "told" and array.ndim == 1 and array.dtype.kind == "U":
                told = tuple(array.tolist())
                continue
            if not match or array.dtype != np.uint8 or array.ndim != 4 or array.shape[1] not in (1, 3):
                raise ReportError(
                    f"{path}: {name}: expected uint8 (N, 1 or 3, H, W) named nfe_<n>, nearest_nfe_<n> or endpoints, or "
                    f"text named told, got {array.shape}"
                )
            if match.group(2):
                (nearest if match.group(1) else found)[int(match.group(2)), match.group(3) or ""] = array
            else:
                endpoints = array
    return _by_row(found), endpoints, _by_row(nearest) or None, told


def _by_row(found: Mapping[tuple[int, str], Images]) -> dict[str, Images]:
    return {f"{nfe} NFE" + (f", {sampler}" if sampler else ""): found[nfe, sampler] for nfe, sampler in sorted(found)}
