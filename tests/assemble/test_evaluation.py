"""The evaluation of a run: its records, and that they do not depend on who did the work or how often it was killed."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from every_run import every_run, make_inputs

from cmcore.assemble.evaluation import Evaluation, Outcome, Share, draw, endpoint_run, evaluate_run
from cmcore.assemble.models import load_model
from cmcore.assemble.passes import Shards, row_names
from cmcore.assemble.training import WEIGHTS, Inputs, train_run
from cmcore.data.images import ImageData
from cmcore.evaluate.collect import Span
from cmcore.evaluate.frechet import frechet_distance
from cmcore.evaluate.moments import Moments
from cmcore.evaluate.nearest import Training
from cmcore.evaluate.records import MetricRecord
from cmcore.evaluate.reference import reference
from cmcore.evaluate.settings import ClassifierConfig, EvalConfig
from cmcore.evaluate.suite import Reference
from cmcore.evaluate.timing import SamplingTimes
from cmcore.sample.presets import few_step_sampler, ode_sampler
from cmcore.sample.stream import generate
from cmcore.tracking.base import Null

CONFIG = EvalConfig(
    samples=60, batch=30, shard=40, teacher_steps=3, bootstrap=2, kid_subsets=2, kid_size=20, score_splits=2,
    nearest=50, endpoints=50, scan=(0.5, 2.0), scan_samples=30, snapshot_samples=30,
    reference=ClassifierConfig(width=4, features=8, images=300, batch=50),
)  # fmt: skip


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Inputs]:
    return make_inputs(tmp_path_factory.mktemp("inputs"))


@pytest.fixture(scope="module")
def results(inputs: dict[str, Inputs], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a distilled run."""
    folder = tmp_path_factory.mktemp("ect") / "work"
    run = every_run().run("ect")
    return train_run(run, inputs["ect"], folder, tracker=Null(), on_progress=lambda *_: None)


@pytest.fixture(scope="module")
def ref(inputs: dict[str, Inputs], tmp_path_factory: pytest.TempPathFactory) -> Reference:
    return reference(ImageData.open(inputs["ect"].data), CONFIG, "tiny", tmp_path_factory.mktemp("reference"))


@pytest.fixture
def ect(inputs: dict[str, Inputs], results: Path, ref: Reference, tmp_path: Path) -> Evaluation:
    data = ImageData.open(inputs["ect"].data)
    training = Training(data.images, data.digest)
    run, init = every_run().run("ect"), inputs["ect"].init
    return Evaluation(run, "tiny", CONFIG, [ref], results, init, tmp_path / "shards", training=training)


def outcome_of(evaluation: Evaluation, said: list[tuple[int, int]] | None = None) -> Outcome:
    told = [] if said is None else said
    return evaluate_run(evaluation, fid_absent="no weights", on_progress=lambda *at: told.append(at))


def same(a: Outcome, b: Outcome) -> bool:
    images = a.samples.keys() == b.samples.keys() and all(np.array_equal(a.samples[k], b.samples[k]) for k in a.samples)
    return images and json.dumps(a.metrics.to_json()) == json.dumps(b.metrics.to_json())


def test_an_evaluation_has_every_number_with_its_provenance(ect: Evaluation, ref: Reference, results: Path):
    said: list[tuple[int, int]] = []
    outcome = outcome_of(ect, said)
    metrics, mark = outcome.metrics.to_json(), load_model(results / WEIGHTS).meta["fingerprint"]
    by_nfe = {nfe: {r["metric"] for r in metrics["records"] if r["provenance"]["nfe"] == nfe} for nfe in (1, 2)}
    features = {"fd", "kid", "precision", "recall", "score", "fd_infinity", "density", "coverage", "authenticity"}
    assert by_nfe[2] == features | {"memorised", "nearest"}
    assert by_nfe[1] - by_nfe[2] == {"endpoint_rmse"}
    for record in metrics["records"]:
        p = record["provenance"]
        assert (p["run"], p["method"], p["fingerprint"], p["ema"]) == ("ect", "ect", mark, "ema")
        assert (p["images"], p["seed"]) == (ect.run.train.total, CONFIG.seed)
        if record["metric"] in ("memorised", "nearest"):
            assert (p["extractor"], p["reference_digest"], p["samples"]) == ("pixels", ref.digest, 50)
        elif record["metric"] != "endpoint_rmse":
            assert (p["extractor"], p["reference_digest"], p["samples"]) == (ref.extractor.name, ref.digest, 60)
            assert p["levels"] == ([20.0] if p["nfe"] == 1 else [20.0, ect.run.sample.two_step])
    assert {r["metric"] for r in [*metrics["scan"], *metrics["snapshots"]]} == {
        "fd",
        "kid",
        "precision",
        "recall",
        "score",
    }
    assert {r["provenance"]["levels"][1] for r in metrics["scan"]} == {0.5, 2.0}
    assert sorted({r["provenance"]["images"] for r in metrics["snapshots"]}) == [384, 704, 1024]
    assert (metrics["fid_absent"], "left_out" in metrics) == ("no weights", False)
    shapes = {name: images.shape for name, images in outcome.samples.items()}
    assert shapes == dict.fromkeys(("nfe_1", "nfe_2", "endpoints", "nearest_nfe_1", "nearest_nfe_2"), (40, 1, 8, 8))
    assert all(not {"ranges", "minimum"} & record.keys() for record in metrics["records"])
    total = 2 * 60 + 2 * 30 + 3 * 30 + 50
    assert [now for now in said if now[0] == now[1]] == [(total, total)]


def test_the_nearest_images_are_those_of_the_training_data(ect: Evaluation):
    outcome, training = outcome_of(ect), ect.training
    assert training is not None
    gaps = np.square(outcome.samples["nfe_1"][:, None].astype(int) - training.images[None]).reshape(40, -1, 64).sum(2)
    assert np.array_equal(outcome.samples["nearest_nfe_1"], training.images[gaps.argmin(1)])
    (value,) = (r.value for r in outcome.metrics.records if r.metric == "nearest" and r.provenance.nfe == 1)
    found = ect.shards.nearest(ect.passes[0])
    assert found is not None
    assert (len(found.squared), found.squared[:40, 0].tolist()) == (50, gaps.min(1).tolist())
    assert value == pytest.approx((found.squared[:, 0] / 64).sqrt().mean().item() / 127.5)


def test_without_training_images_no_copies_are_looked_for(ect: Evaluation):
    for other in (replace(ect, training=None), replace(ect, config=replace(CONFIG, nearest=0))):
        outcome = outcome_of(other)
        assert not {"memorised", "nearest"} & {record.metric for record in outcome.metrics.records}
        assert not any(name.startswith("nearest") for name in outcome.samples)


def test_every_row_has_its_speed_beside_the_records(ect: Evaluation):
    times = outcome_of(ect).times
    assert times is not None
    assert [(row.nfe, row.batch) for row in times.rows] == [(1, 30), (2, 30)]
    assert all(0 < row.latency < 5 and 1 < row.images_per_second < 1e7 for row in times.rows)
    assert "thread" in times.device
    assert SamplingTimes.from_json(times.to_json()) == times
    assert outcome_of(replace(ect, final_only=True)).times is None


def test_a_diffusion_model_is_sampled_by_the_ode_solver_alone(ect: Evaluation, inputs: dict[str, Inputs]):
    edm = replace(ect, run=every_run().run("edm"), folder=inputs["ect"].init.parent, teacher=None)
    metrics = outcome_of(edm).metrics.to_json()
    assert {r["provenance"]["nfe"] for r in metrics["records"]} == {2 * CONFIG.teacher_steps - 1}
    assert metrics["scan"] == []


def test_the_shown_images_are_the_first_of_those_that_were_measured(ect: Evaluation, ref: Reference, results: Path):
    outcome, model = outcome_of(ect), load_model(results / WEIGHTS)
    one_step = ect.run.objective.samplers(ect.run.sampling(3))[0]
    images = torch.cat(list(generate(one_step, model.denoiser, (1, 8, 8), range(60), seed=1, batch=30)))
    assert np.array_equal(outcome.samples["nfe_1"], images[:40].numpy())
    features = ref.extractor(images)
    halves = [Moments.of(features[:40]), Moments.of(features[40:])]
    fd = next(r["value"] for r in outcome.metrics.to_json()["records"] if r["metric"] == "fd")
    assert fd == pytest.approx(frechet_distance(Moments.total(halves), ref.moments), rel=1e-9)


@pytest.mark.parametrize("workers", [2, 3])
def test_any_number_of_workers_gives_the_same_bits(ect: Evaluation, tmp_path: Path, workers: int):
    alone, shared = outcome_of(ect), replace(ect, work=tmp_path / "shared")
    sampled: list[int] = []
    for number in reversed(range(workers)):  # in any order
        draw(replace(shared), Share(number, workers), lambda done, total: sampled.append(total))
    shards = set(shared.store.rglob("*.safetensors"))
    assert len(shards) == 2 * 2 + 2 + 2 + 3
    times = {shard: shard.stat().st_mtime_ns for shard in shards}
    assert same(outcome_of(shared), alone)
    assert {shard: shard.stat().st_mtime_ns for shard in shared.store.rglob("*.safetensors")} == times


def test_the_size_of_a_shard_changes_no_more_than_rounding(ect: Evaluation):
    whole = outcome_of(replace(ect, config=replace(CONFIG, shard=60)))
    for a, b in zip(outcome_of(ect).metrics.to_json()["records"], whole.metrics.to_json()["records"], strict=True):
        assert a["metric"] == b["metric"]
        assert a["value"] == pytest.approx(b["value"], rel=1e-5)


def test_a_killed_evaluation_goes_on_from_its_finished_shards(ect: Evaluation, tmp_path: Path):
    class KilledError(BaseException):
        pass

    killed, did = replace(ect, work=tmp_path / "killed"), []
    alone = outcome_of(ect)
    for stop in (35, 130):

        def die(done: int, total: int, stop: int = stop) -> None:
            did.append(done)
            if done > stop:
                raise KilledError

        with pytest.raises(KilledError):
            evaluate_run(replace(killed), fid_absent="no weights", on_progress=die)
        (killed.store / "nfe_1" / ".000000000.safetensors.1.part").write_bytes(b"cut off in the middle")
    there = set(killed.store.rglob("*.safetensors"))
    assert 3 <= len(there) < 11
    assert same(outcome_of(replace(killed)), alone)


def test_seed_ranges_are_disjoint_samples_under_one_seed(ect: Evaluation, ref: Reference, results: Path):
    config = replace(CONFIG, seed_ranges=3, scan=(), bootstrap=2)
    metrics, single = outcome_of(replace(ect, config=config)).metrics.to_json(), outcome_of(ect).metrics.to_json()
    model = load_model(results / WEIGHTS)
    one_step = ect.run.objective.samplers(ect.run.sampling(3))[0]
    images = torch.cat(list(generate(one_step, model.denoiser, (1, 8, 8), range(180), seed=1, batch=90)))
    expected = [frechet_distance(Moments.of(ref.extractor(part)), ref.moments) for part in images.split(60)]
    record = MetricRecord.from_json(metrics["records"][0])
    assert (record.metric, record.spread_of) == ("fd", "seed ranges")
    assert [one.first for one in record.ranges] == [0, 60, 120]
    assert [one.value for one in record.ranges] == pytest.approx(expected, rel=1e-5)
    assert record.value == pytest.approx(np.mean(expected), rel=1e-5)
    assert record.spread == pytest.approx(np.std(expected, ddof=1), rel=1e-4)
    assert record.minimum == min(one.value for one in record.ranges) == metrics["records"][0]["minimum"]
    for several, one in zip(metrics["records"], single["records"], strict=True):
        assert several["provenance"] == one["provenance"]
        if several["metric"] not in ("endpoint_rmse", "memorised", "nearest"):
            assert several["ranges"][0]["value"] == one["value"]
            assert all({"spread", "spread_of", "first", "samples"} < range_.keys() for range_ in several["ranges"])


def test_features_are_kept_up_to_a_number(ect: Evaluation):
    """Distances are of all samples whatever is kept; the other metrics are of those kept, and say so."""
    few = outcome_of(replace(ect, config=replace(CONFIG, kept=25, bootstrap=0))).metrics.to_json()["records"]
    for a, b in zip(
        few, outcome_of(replace(ect, config=replace(CONFIG, bootstrap=0))).metrics.to_json()["records"], strict=True
    ):
        if a["metric"] in ("fd", "endpoint_rmse", "memorised", "nearest"):
            assert a == b
        else:
            assert (a["provenance"]["samples"], b["provenance"]["samples"]) == (25, 60)


def test_a_reference_of_moments_alone_leaves_out_what_needs_features_and_says_so(ect: Evaluation, ref: Reference):
    published = replace(ref, features=None, absent="No KID: only moments")
    found = outcome_of(replace(ect, references=[published])).metrics.to_json()
    assert found["left_out"] == "No KID: only moments"
    assert {r["metric"] for r in found["records"]} == {
        "fd", "fd_infinity", "score", "endpoint_rmse", "memorised", "nearest"
    }  # fmt: skip


@pytest.mark.parametrize("what", ["samples", "weights", "extractor"])
def test_shards_of_another_evaluation_are_never_taken(ect: Evaluation, inputs: dict[str, Inputs], what: str, ref: Any):
    class Other:
        digest, name, dim, fidelity = "0" * 64, "other", ref.extractor.dim, False

    other = {
        "samples": replace(ect, config=replace(CONFIG, seed=2)),
        "weights": replace(ect, folder=inputs["ect"].init.parent),
        "extractor": replace(ect, references=[replace(ref, extractor=Other())]),
    }[what]
    assert other.store != ect.store
    assert replace(ect).store == ect.store


def test_every_shard_is_named_by_its_first_image(ect: Evaluation):
    shards: Shards = replace(ect, config=replace(CONFIG, seed_ranges=2)).shards
    units = shards.units(replace(ect, config=replace(CONFIG, seed_ranges=2)).passes[:1])
    assert [unit.span for unit in units] == [Span(0, 40), Span(40, 60), Span(60, 100), Span(100, 120)]
    assert len({shards.path(unit) for unit in units}) == 4


def test_the_endpoint_error_is_zero_for_a_student_that_is_its_teachers_solver(
    ect: Evaluation, inputs: dict[str, Inputs]
):
    def error(evaluation: Evaluation, **changes: Any) -> float:
        one = next(found for found in evaluation.passes if found.teacher)
        one, shards = replace(one, **changes), evaluation.shards
        units: Sequence[Any] = shards.units([one])
        for unit in units:
            shards.do(unit, lambda count: None)
        return float(shards.errors(one).mean())

    source = inputs["ect"].init
    truth = ode_sampler(load_model(source).diffusion, CONFIG.teacher_steps)
    assert error(ect, name="same", weights=source, sampler=truth) == 0
    assert error(ect, name="one_step", weights=source) > 0.05**2


def test_end_points_are_those_of_the_teacher_or_else_of_a_diffusion_model_that_a_run_starts_from():
    runs = every_run().runs
    assert {name: endpoint_run(runs, run) for name, run in runs.items()} == {
        name: next((source for source in ("edm", "rf") if source in run.parents), "") for name, run in runs.items()
    }
    runs["other"] = replace(runs["edm"], name="other")
    assert endpoint_run(runs, replace(runs["scd"], teacher="other")) == "other"
    assert endpoint_run(runs, replace(runs["ect"], init="ict")) == ""


def test_rows_are_named_by_their_evaluations_and_never_alike():
    d = every_run().sections.diffusion
    one, two, other = few_step_sampler(d), few_step_sampler(d, 0.8), few_step_sampler(d, 0.5)
    assert row_names([one, two]) == ["nfe_1", "nfe_2"]
    three = few_step_sampler(d, 0.8, 0.5)
    assert row_names([three, ode_sampler(d, 2)]) == ["nfe_3_multistep", "nfe_3_heun"]
    assert row_names([one, two, other]) == ["nfe_1", "nfe_2_multistep_1", "nfe_2_multistep_2"]
