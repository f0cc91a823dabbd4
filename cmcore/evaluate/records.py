"""Measured values that cannot exist without their provenance. Imports no torch: tables read records cheaply."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

from cmcore.config import read

# torch-fidelity's port of the Inception network of 2015-12-05: its file name ends in the first 8 digits of its sha256.
INCEPTION_DIGEST = "6726825d"
NO_EXTRACTOR = "pixels"


class Measured(NamedTuple):
    """A value, its spread, and what the spread is over ("bootstrap", "subsets", "splits", "images")."""

    value: float
    spread: float
    spread_of: str


@dataclass(frozen=True, kw_only=True)
class Source:
    """Where a set of samples comes from."""

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
    reference_digest: str  # of the reference images
    reference_count: int
    samples: int

    def __post_init__(self) -> None:
        super().__post_init__()
        for key in ("extractor", "extractor_digest", "reference_digest"):
            if not getattr(self, key):
                raise ValueError(f"provenance: {key}: expected a non-empty text, got {getattr(self, key)!r}")
        if self.samples < 1 or self.reference_count < 1:
            raise ValueError(
                f"provenance: expected samples and reference_count of at least 1, got {self.samples} and "
                f"{self.reference_count}"
            )


@dataclass(frozen=True, kw_only=True)
class MetricRecord:
    """One measured value. `metric` is the kind ("fd", "kid", "precision", "recall", "score", "fid", "endpoint_rmse").

    Raises:
        ValueError: the value is not finite, or claims to be an FID without the Inception features that define FID.
    """

    metric: str
    value: float
    spread: float
    spread_of: str
    provenance: Provenance

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
    def name(self) -> str:
        """The name that says which features the value was measured in: fd_digits_cnn_1a2b3c4d."""
        plain = self.metric.lower().startswith("fid") or self.provenance.extractor == NO_EXTRACTOR
        return self.metric if plain else f"{self.metric}_{self.provenance.extractor}"


def to_json(record: MetricRecord) -> dict[str, Any]:
    """A record as plain JSON data; `name` is added for the reader."""
    data = asdict(record)
    data["provenance"]["levels"] = list(record.provenance.levels)
    return {"name": record.name, **data}


def from_json(data: Mapping[str, Any]) -> MetricRecord:
    """A record from `to_json`'s data.

    Raises:
        ValueError: a field is missing, unknown or of the wrong type, or the name contradicts the provenance.
    """
    fields = {key: value for key, value in data.items() if key != "name"}
    record = read(MetricRecord, fields, "record")
    if data.get("name", record.name) != record.name:
        raise ValueError(f"record.name: expected {record.name!r}, got {data['name']!r}")
    return record
