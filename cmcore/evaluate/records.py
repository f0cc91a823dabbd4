"""Measured values that cannot exist without their provenance. Imports no torch: tables read records cheaply."""

import math
import re
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import chain
from typing import Any, Literal, NamedTuple

from cmcore.config import read
from cmcore.diffusion.words import Conditional

# torch-fidelity's port of the Inception network of 2015-12-05: its file name ends in the first 8 digits of its sha256.
INCEPTION_DIGEST = "6726825d"
NO_EXTRACTOR = "pixels"
INCEPTION = "inception"
# Names of extractors in the features of public networks: of other weights of Inception, and of any size of DINOv2.
_SPACES = {INCEPTION: r"inception_[0-9a-f]{8}", "dinov2": r"dinov2_vit\w*_[0-9a-f]{8}"}


class Measured(NamedTuple):
    """A value, its spread, and what the spread is over ("bootstrap", "subsets", "splits", "images")."""

    value: float
    spread: float
    spread_of: str


@dataclass(frozen=True, kw_only=True)
class Source:
    """The source of a set of samples."""

    workload: str
    run: str
    method: str
    fingerprint: str  # of the training run
    sampler: str
    nfe: int
    ema: str  # which EMA profile's weights
    images: int  # training images behind the weights
    seed: int  # of the samples' noise
    levels: tuple[float, ...] = ()  # noise levels of a few-step sampler

    def __post_init__(self) -> None:
        for key in ("workload", "run", "method", "fingerprint", "sampler", "ema"):
            if not getattr(self, key):
                raise ValueError(f"provenance: {key}: expected a non-empty text, got {getattr(self, key)!r}")
        if self.nfe < 0 or self.images < 0:
            raise ValueError(f"provenance: expected nfe and images of 0 or more, got {self.nfe} and {self.images}")


@dataclass(frozen=True, kw_only=True)
class Provenance(Source):
    """The samples' source, and what they were measured with and against."""

    extractor: str  # its name, or NO_EXTRACTOR
    extractor_digest: str
    reference_digest: str  # of the reference images, or of the file of their published moments
    reference_count: int  # 0 where published moments do not say it
    samples: int

    def __post_init__(self) -> None:
        super().__post_init__()
        for key in ("extractor", "extractor_digest", "reference_digest"):
            if not getattr(self, key):
                raise ValueError(f"provenance: {key}: expected a non-empty text, got {getattr(self, key)!r}")
        if self.samples < 1 or self.reference_count < 0:
            raise ValueError(
                f"provenance: expected samples of at least 1 and reference_count of at least 0, got {self.samples} and "
                f"{self.reference_count}"
            )


@dataclass(frozen=True, kw_only=True)
class SeedRange:
    """The value of one range of samples: those with the numbers `first` to `first + samples - 1`, under one seed.

    All else that the value was made from is that of the record.
    """

    first: int
    samples: int
    value: float
    spread: float
    spread_of: str


@dataclass(frozen=True, kw_only=True)
class MetricRecord:
    """One measured value. `metric` is the kind, such as "fd", "kid", "fid", "endpoint_rmse" or "memorised".

    Where several ranges of samples were measured, the value is their mean and the spread their standard deviation.

    Raises:
        ValueError: the value is not finite, or claims to be an FID without the Inception features that define FID.
    """

    metric: str
    value: float
    spread: float
    spread_of: str
    provenance: Provenance
    ranges: tuple[SeedRange, ...] = ()  # none: only one was measured

    def __post_init__(self) -> None:
        if not self.metric:
            raise ValueError("metric: expected a non-empty name, got ''")
        if self.metric.lower().startswith("fid") and not self.provenance.extractor_digest.startswith(INCEPTION_DIGEST):
            raise ValueError(
                f"metric {self.metric!r}: expected the features of Inception weights {INCEPTION_DIGEST}..., got "
                f"{self.provenance.extractor!r} ({self.provenance.extractor_digest[:8]}...); call it 'fd'"
            )
        if not (math.isfinite(self.value) and math.isfinite(self.spread) and self.spread >= 0):
            raise ValueError(
                f"metric {self.metric!r} of run {self.provenance.run!r}: expected finite numbers, got "
                f"{self.value} with spread {self.spread}"
            )

    @property
    def space(self) -> str:
        """The features that are no workload's own, "inception" or "dinov2"; empty for those, and for pixels."""
        p = self.provenance
        if p.extractor_digest.startswith(INCEPTION_DIGEST):
            return INCEPTION
        return next((name for name, names in _SPACES.items() if re.fullmatch(names, p.extractor)), "")

    @property
    def key(self) -> str:
        """The metric, with its features where they are not the workload's own: records of one key compare."""
        plain = not self.space or self.metric.lower().startswith("fid")
        return self.metric if plain else f"{self.metric}_{self.space}"

    @property
    def minimum(self) -> float:
        """The least value of any range, which is what EDM's authors quote as their FID."""
        return min((one.value for one in self.ranges), default=self.value)

    @property
    def name(self) -> str:
        """The name that says which features the value was measured in: fd_digits_cnn_1a2b3c4d."""
        plain = self.metric.lower().startswith("fid") or self.provenance.extractor == NO_EXTRACTOR
        return self.metric if plain else f"{self.metric}_{self.provenance.extractor}"

    def to_json(self) -> dict[str, Any]:
        """Plain JSON data; `name` and, over several ranges, `minimum` are added for the reader."""
        data = asdict(self)
        data["provenance"]["levels"] = list(self.provenance.levels)
        ranges = list(data.pop("ranges"))
        return {"name": self.name, **data, **({"minimum": self.minimum, "ranges": ranges} if ranges else {})}

    @classmethod
    def from_json(cls, data: Any) -> "MetricRecord":
        """A record from `to_json`'s data.

        Raises:
            ValueError: a field is missing, unknown or of the wrong type, or the name contradicts the provenance.
        """
        derived = ("name", "minimum")
        given = {key: value for key, value in _mapping(data, "record").items() if key not in derived}
        record = read(cls, given, "record")
        for key in derived:
            if data.get(key, getattr(record, key)) != getattr(record, key):
                raise ValueError(f"record.{key}: expected {getattr(record, key)!r}, got {data[key]!r}")
        return record


@dataclass(frozen=True, kw_only=True)
class RunFacts:
    """The trained run that was measured."""

    workload: str
    run: str
    method: str
    init: str  # the run it starts from, or "random"
    parameters: int  # trainable scalars of the network
    images: int  # training images seen by this run, without those of `init`
    ema: str
    seed: int  # of the training run
    conditional: Conditional = False
    fid_absent: str = ""  # why there is no Inception FID; empty where there is one
    left_out: str = ""  # which other metrics are missing, and why
    decoder: str = ""  # digest of what decoded the samples; empty where they were images
    labels: str = ""  # how often each class was sampled (`eval.labels`); empty where the samples have no classes


@dataclass(frozen=True, kw_only=True)
class Replicate:
    """The records of the run trained from another seed."""

    seed: int
    records: tuple[MetricRecord, ...]


@dataclass(frozen=True, kw_only=True)
class RunMetrics:
    """The content of metrics/<run>.json."""

    facts: RunFacts
    records: tuple[MetricRecord, ...]  # of the final weights, per number of function evaluations
    scan: tuple[MetricRecord, ...] = ()  # two-step sampling at other levels
    snapshots: tuple[MetricRecord, ...] = ()  # of the weights on the way
    guidance: tuple[MetricRecord, ...] = ()  # of the final weights, at other guidance scales
    replicates: tuple[Replicate, ...] = ()  # the same as `records`, of the other training seeds

    def to_json(self) -> dict[str, Any]:
        """Plain JSON data: the facts beside lists of records.

        Other guidance scales, spreads, replicates and the last three facts are there if any.
        """
        optional = ("left_out", "decoder", "labels")
        facts = {key: value for key, value in asdict(self.facts).items() if value or key not in optional}
        others = [{"seed": one.seed, "records": [r.to_json() for r in one.records]} for one in self.replicates]
        given = [key for key in _LISTS if key != "guidance" or self.guidance]
        lists = {key: [record.to_json() for record in getattr(self, key)] for key in given}
        return {**facts, **self._scores(), **lists, **({"replicates": others} if others else {})}

    def _scores(self) -> dict[str, dict[str, float]]:
        """The values of the records by name: over several training seeds their means, and standard deviations."""
        found: dict[tuple[str, str], list[float]] = {}
        for record in chain(self.records, *(one.records for one in self.replicates)):
            found.setdefault((score_name(record), record.provenance.sampler), []).append(record.value)
        means = {name: statistics.fmean(each) for (name, _), each in found.items()}
        spreads = {name: statistics.stdev(each) for (name, _), each in found.items() if len(each) > 1}
        return {SCORES: means, **({SPREADS: spreads} if self.replicates else {})}

    @classmethod
    def from_json(cls, data: Any) -> "RunMetrics":
        """Metrics from `to_json`'s data.

        Raises:
            ValueError: a field is missing, unknown or of the wrong type, or there is no record.
        """
        other = (*_LISTS, SCORES, SPREADS, "replicates")
        facts = read(RunFacts, {key: value for key, value in _mapping(data).items() if key not in other})
        lists = {key: _records(data, key) for key in _LISTS}
        if not lists["records"]:
            raise ValueError("expected at least one record, got none")
        return cls(facts=facts, **lists, replicates=_replicates(data, facts.seed))


_LISTS = ("records", "scan", "snapshots", "guidance")
# The values of the records once more, as `dvc metrics` and `dvc exp show` leave out lists.
SCORES, SPREADS = "scores", "score_spreads"


def score_name(record: MetricRecord) -> str:
    """A metric at a number of function evaluations, so that equal names compare."""
    return f"{record.key}_nfe{record.provenance.nfe}"


@dataclass(frozen=True, kw_only=True)
class DataFacts:
    """The real images."""

    digest: str
    count: int
    classes: int


@dataclass(frozen=True, kw_only=True)
class ExtractorFacts:
    """The feature extractor of a workload. `accuracy` and `config` are those of its training."""

    name: str
    digest: str
    dim: int
    kind: Literal["classifier", "random", "reader"]  # of classes, untrained, or of captions
    accuracy: dict[str, float] | None
    config: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class ReferenceFacts:
    """The content of reference.json: what runs are measured with and against."""

    workload: str
    data: DataFacts
    extractor: ExtractorFacts
    halves: float  # Frechet distance between two halves of the images; 0 where not measured
    baseline: tuple[MetricRecord, ...]  # of what is no run
    anchors: tuple[MetricRecord, ...] = ()  # of real images as if they were samples: a half, and the test images

    def to_json(self) -> dict[str, Any]:
        """Plain JSON data."""
        return {**asdict(self), **{key: [r.to_json() for r in getattr(self, key)] for key in ("baseline", "anchors")}}

    @classmethod
    def from_json(cls, data: Any) -> "ReferenceFacts":
        """Facts from `to_json`'s data.

        Raises:
            ValueError: a field is missing, unknown or of the wrong type.
        """
        facts = read(cls, {**_mapping(data), "baseline": [], "anchors": []})
        return replace(facts, baseline=_records(data, "baseline"), anchors=_records(data, "anchors"))


def _replicates(data: Mapping[str, Any], first: int) -> tuple[Replicate, ...]:
    found = data.get("replicates", [])
    if not isinstance(found, list):
        raise ValueError(f"replicates: expected a list, got {found!r}")
    read_ones = []
    for place, one in enumerate(found):
        where = f"replicates[{place}]"
        seed, extra = _mapping(one, where).get("seed"), set(one) - {"seed", "records"}
        known = [first, *(other.seed for other in read_ones)]
        if type(seed) is not int or seed in known or extra:
            raise ValueError(
                f"{where}: expected records and a seed that is none of {known}, got {sorted(one)}, {seed!r}"
            )
        read_ones.append(Replicate(seed=seed, records=_records(one, "records")))
    return tuple(read_ones)


def _records(data: Mapping[str, Any], key: str) -> tuple[MetricRecord, ...]:
    found = data.get(key, [])
    if not isinstance(found, list):
        raise ValueError(f"{key}: expected a list of records, got {found!r}")
    try:
        return tuple(map(MetricRecord.from_json, found))
    except ValueError as error:
        raise ValueError(f"{key}: {error}") from error


def _mapping(data: Any, what: str = "") -> Mapping[str, Any]:
    if not isinstance(data, Mapping):
        raise ValueError(f"{what}{': ' * bool(what)}expected a mapping, got {type(data).__name__}")
    return data


def over_ranges(records: Sequence[MetricRecord], firsts: Sequence[int]) -> MetricRecord:
    """One record of the same metric over several ranges of samples, which begin at `firsts`.

    Raises:
        ValueError: the records differ in more than the values.
    """
    if len({(one.metric, one.provenance) for one in records}) != 1 or len(records) != len(firsts):
        raise ValueError("ranges: expected records of one metric with one provenance, and a first sample for each")
    values = [one.value for one in records]
    mean = math.fsum(values) / len(values)
    spread = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / max(1, len(values) - 1))
    ranges = tuple(
        SeedRange(
            first=first, samples=one.provenance.samples, value=one.value, spread=one.spread, spread_of=one.spread_of
        )
        for first, one in zip(firsts, records, strict=True)
    )
    return replace(records[0], value=mean, spread=spread, spread_of="seed ranges", ranges=ranges)
