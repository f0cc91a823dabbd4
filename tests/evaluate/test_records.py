"""Provenance is required, survives a round trip, and guards the name FID."""

import json
from dataclasses import replace

import pytest

from cmcore.config import ConfigError, read
from cmcore.evaluate.records import (
    INCEPTION_DIGEST,
    MetricRecord,
    Provenance,
    Replicate,
    RunFacts,
    RunMetrics,
    over_ranges,
)
from cmcore.evaluate.settings import EvalConfig

PROVENANCE = Provenance(
    workload="digits",
    run="ect",
    method="ect",
    fingerprint="f" * 16,
    sampler="multistep",
    nfe=2,
    ema="slow",
    images=150_000,
    seed=1,
    levels=(20.0, 0.8),
    extractor="digits_cnn_0a1b2c3d",
    extractor_digest="0a1b2c3d" * 8,
    reference_digest="d" * 64,
    reference_count=1797,
    samples=5000,
)
RECORD = MetricRecord(metric="fd", value=0.1, spread=0.01, spread_of="bootstrap", provenance=PROVENANCE)


def test_round_trip_through_json_text():
    assert MetricRecord.from_json(json.loads(json.dumps(RECORD.to_json()))) == RECORD


def test_name_carries_the_extractor():
    assert RECORD.name == "fd_digits_cnn_0a1b2c3d"
    assert RECORD.to_json()["name"] == RECORD.name


def test_value_needs_provenance():
    with pytest.raises(TypeError, match="provenance"):
        MetricRecord(metric="fd", value=0.1, spread=0.0, spread_of="bootstrap")  # pyright: ignore[reportCallIssue]
    data = RECORD.to_json()
    del data["provenance"]["extractor_digest"]
    with pytest.raises(ConfigError, match=r"record\.provenance\.extractor_digest: is missing"):
        MetricRecord.from_json(data)


@pytest.mark.parametrize("metric", ["fid", "fid_50k", "FID"])
def test_only_inception_features_may_be_called_fid(metric):
    with pytest.raises(ValueError, match="call it 'fd'"):
        replace(RECORD, metric=metric)
    inception = replace(PROVENANCE, extractor="inception", extractor_digest=INCEPTION_DIGEST + "0" * 56)
    assert replace(RECORD, metric=metric, provenance=inception).name == metric


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_non_finite_values_are_refused(value):
    with pytest.raises(ValueError, match="finite"):
        replace(RECORD, value=value)


@pytest.mark.parametrize(
    ("field", "value"), [("run", ""), ("extractor_digest", ""), ("samples", 0), ("reference_count", -1), ("nfe", -1)]
)
def test_empty_provenance_is_refused(field, value):
    with pytest.raises(ValueError, match="provenance"):
        replace(PROVENANCE, **{field: value})


def test_a_contradicting_name_is_refused():
    with pytest.raises(ValueError, match=r"record\.name"):
        MetricRecord.from_json({**RECORD.to_json(), "name": "fd_something_else"})


def test_ranges_give_mean_minimum_and_spread_and_survive_a_round_trip():
    three = [replace(RECORD, value=value, spread=0.0) for value in (3.0, 1.0, 2.0)]
    record = over_ranges(three, [0, 5000, 10000])
    assert (record.value, record.minimum, record.spread, record.spread_of) == (2.0, 1.0, 1.0, "seed ranges")
    assert [(one.first, one.samples, one.value) for one in record.ranges] == [
        (0, 5000, 3.0), (5000, 5000, 1.0), (10000, 5000, 2.0),
    ]  # fmt: skip
    data = json.loads(json.dumps(record.to_json()))
    assert data["minimum"] == 1.0
    assert MetricRecord.from_json(data) == record
    with pytest.raises(ValueError, match=r"record\.minimum: expected 1\.0, got 0\.5"):
        MetricRecord.from_json(data | {"minimum": 0.5})
    assert not {"ranges", "minimum"} & RECORD.to_json().keys()


def test_ranges_of_different_things_are_refused():
    other = replace(RECORD, provenance=replace(PROVENANCE, nfe=1))
    with pytest.raises(ValueError, match="one metric with one provenance"):
        over_ranges([RECORD, other], [0, 5000])


def test_settings_name_the_wrong_key():
    assert read(EvalConfig, {"scan": [0.4, 1], "reference": {"images": 10}}, "eval").scan == (0.4, 1.0)
    with pytest.raises(ConfigError, match=r"eval\.samples: expected at least 500"):
        read(EvalConfig, {"samples": 100}, "eval")
    with pytest.raises(ConfigError, match=r"eval\.reference\.holdout"):
        read(EvalConfig, {"reference": {"holdout": 1.0}}, "eval")


FACTS = {"workload": "digits", "run": "ect", "method": "ect", "init": "edm", "parameters": 5, "images": 9, "seed": 1}
METRICS = RunMetrics(facts=RunFacts(**FACTS, ema="slow"), records=(RECORD,), snapshots=(RECORD, RECORD))


def test_metrics_of_a_run_come_back_from_json_text():
    assert RunMetrics.from_json(json.loads(json.dumps(METRICS.to_json()))) == METRICS
    assert not {"left_out", "decoder"} & METRICS.to_json().keys()
    latents = replace(METRICS, facts=replace(METRICS.facts, decoder="d" * 64))
    assert RunMetrics.from_json(latents.to_json()) == latents
    assert METRICS.to_json()["scores"] == {f"{RECORD.metric}_nfe{RECORD.provenance.nfe}": RECORD.value}
    assert "score_spreads" not in METRICS.to_json()


def test_over_several_seeds_the_scores_are_means_with_their_deviations():
    others = [Replicate(seed=2 + n, records=(replace(RECORD, value=value),)) for n, value in enumerate((0.2, 0.6))]
    data = replace(METRICS, replicates=tuple(others)).to_json()
    assert data["scores"] == {"fd_nfe2": pytest.approx(0.3)}
    assert data["score_spreads"] == {"fd_nfe2": pytest.approx(0.07**0.5)}
    assert RunMetrics.from_json(data).records == METRICS.records


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"records": []}, "expected at least one record"),
        ({"scan": 3}, "scan: expected a list of records, got 3"),
        ({"scan": [3]}, "scan: record: expected a mapping, got int"),
        ({"imagse": 3}, r"imagse: unknown key; did you mean 'images'\?"),
        ({"seed": "1"}, "seed: expected a whole number, got '1'"),
    ],
)
def test_wrong_metrics_are_one_line(changes, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        RunMetrics.from_json(METRICS.to_json() | changes)
