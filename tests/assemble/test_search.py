"""Searches without Ray: spaces, checks of the parameter file, budgets, and trials that stop and continue anywhere."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_search import PARAMS, make_job

from cmcore.assemble.project import parse_project
from cmcore.config import ConfigError, merge
from cmcore.search import trial as trials
from cmcore.search.confirm import confirm
from cmcore.search.entries import searches
from cmcore.search.search import WORST, overrides, posthoc_run, scaled, search_fingerprint, train_once, trial_run
from cmcore.search.space import Dimension, TuneConfig, dimensions
from cmcore.search.trial import Trial, ranked, run_trial, trial_folder
from cmcore.train import checkpoint
from cmcore.train.session import CHECKPOINT

VALUES = {"options.q": 4.0, "train.lr": 1e-3, "train.ema.ema.half_life": 100}

START = {"options": {"q": 4.0}, "train": {"lr": 1e-3, "ema": {"ema": {"half_life": 100.0}}}}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("search")


def tune(name: str = "schedule", **changes) -> TuneConfig:
    return searches(parse_project(merge(PARAMS, {"tune": {name: changes}})))[name]


def test_a_space_is_flat_with_dotted_paths():
    found = list(dimensions(PARAMS["tune"]["schedule"]["space"]))
    assert [(d.path, d.kind, d.values) for d in found] == [
        ("options.q", "uniform", (2.0, 8.0)),
        ("train.lr", "loguniform", (3e-4, 3e-2)),
        ("train.ema.ema.half_life", "loguniform", (50, 500)),
    ]


@given(st.sampled_from(["uniform", "loguniform", "quniform"]), st.booleans(), st.floats(-1e6, 1e6))
@settings(deadline=None)
def test_cleaned_values_lie_in_the_space_and_stay_there(kind, whole, value):
    bounds = (2, 90) if whole else (0.03, 0.9)
    step = () if kind != "quniform" else (4,) if whole else (0.029,)
    dimension = Dimension("x", kind, (*bounds, *step))
    clean = dimension.clean(value)
    assert dimension.low <= clean <= dimension.high
    assert dimension.clean(clean) == clean
    assert isinstance(clean, int) == whole
    assert 0 <= dimension.position(clean) <= 1
    if kind != "quniform" and bounds[0] <= value <= bounds[1]:
        assert abs(clean - value) <= (0.5 if whole else 5e-4 * abs(value))


def test_positions_follow_the_scale_of_the_search():
    assert Dimension("x", "loguniform", (1.0, 100.0)).position(10.0) == pytest.approx(0.5)
    assert Dimension("x", "uniform", (0.0, 10.0)).position(2.5) == 0.25
    assert Dimension("x", "choice", ("a", "b", "c")).position("b") == 0.5


@pytest.mark.parametrize(
    ("changes", "path", "words"),
    [
        ({"base": "etc"}, "tune.schedule.base", "expected one of edm, ect, sct, got 'etc'"),
        ({"base": "edm", "init": "random"}, "tune.schedule.base", "is trained and samples in few steps, got edm"),
        ({"init": "random"}, "tune.schedule.init", "expected 'edm', as in runs.ect, got 'random'"),
        ({"teacher": "edm"}, "tune.schedule.teacher", "expected 'none', as in runs.ect, got 'edm'"),
        ({"space": {"options": {"qq": {"uniform": [1, 2]}}}}, "tune.schedule.space.options.qq", "did you mean 'q'?"),
        ({"space": {"options": {"q": {"uniform": [0.5, 2.0]}}}}, "tune.schedule.space.options.q", "0.5 is impossible"),
        ({"space": {"options": {"q": 3}}}, "tune.schedule.space.options.q", "expected one of uniform"),
        ({"space": {"options": {"q": {"uniform": [2, 1]}}}}, "tune.schedule.space.options.q.uniform", "rising numbers"),
        ({"space": {"train": {"lr": {"loguniform": [0, 1]}}}}, "tune.schedule.space.train.lr.loguniform", "above 0"),
        (
            {"space": {"train": {"seed": {"choice": [1, 2]}}}},
            "tune.schedule.space.train.seed",
            "the search itself sets",
        ),
        ({"space": {"net": {"hidden": {"choice": [4, 8]}}}}, "tune.schedule.space.net.hidden", "the network of 'edm'"),
        (
            {"space": {"train": {"ema": {"ema": {"half_life": {"uniform": [1, 2]}}}}}},
            "tune.schedule.space.train.ema.ema.half_life",
            "expected loguniform or choice",
        ),
        ({"rungs": 3}, "tune.schedule", "before the curriculum's first step, after 50%"),
        ({"images": 16}, "tune.schedule.images", "expected at least"),
        ({"scheduler": "pbt", "searcher": "optuna"}, "tune.schedule.searcher", "random for pbt"),
        ({"confirm": [1001]}, "tune.schedule.confirm", "seeds that the search did not use"),
        ({"kind": "posthoc"}, "tune.schedule.space", "std alone"),
        ({"start": [START, {}]}, "tune.schedule.start[1]", "values of options.q, train.lr, train.ema.ema.half_life"),
        (
            {"start": [merge(START, {"options": {"q": 99.0}})]},
            "tune.schedule.start[0].options.q",
            "a value of the space",
        ),
        ({"start": [merge(START, {"options": {"q": "4"}})]}, "tune.schedule.start[0].options.q", "got '4'"),
        ({"start": [{"options": {True: 4.0}}]}, "tune.schedule.start[0]", "got 'options.True'"),
        ({"start": [START], "searcher": "random"}, "tune.schedule.searcher", "which can `start`"),
        ({"trials": 0}, "tune.schedule.trials", "between 1 and a million"),
        ({"nfe": 3}, "tune.schedule.nfe", "expected one of 1, 2"),
    ],
)
def test_a_wrong_search_is_refused_before_any_compute(changes, path, words):
    changed = merge(PARAMS, {"tune": {"schedule": changes}})
    if "space" in changes:
        changed["tune"]["schedule"]["space"] = changes["space"]
    with pytest.raises(ConfigError) as caught:
        searches(parse_project(changed))
    assert caught.value.path == path
    assert words in str(caught.value)


@pytest.mark.parametrize("method", ["edm", "ect"])
def test_a_search_over_weights_of_others_is_refused(method):
    public = {"method": method, "init": "random", "teacher": "none", "weights": {"file": "x"}}
    changes = {"runs": {"public": public}, "tune": {"schedule": {"base": "public", "init": "random"}}}
    with pytest.raises(ConfigError, match=f"expected a run that is trained and samples in few steps, got {method}"):
        searches(parse_project(merge(PARAMS, changes)))


def test_rungs_are_spaced_by_ratios_and_equidistant_for_pbt():
    config = tune(rungs=2)
    assert (config.parts, config.marks) == (2, [1, 2])
    run = {"base": "a", "init": "b", "teacher": "none"}
    long = TuneConfig(**run, space=config.space, rungs=4, reduction=3)
    assert (long.parts, long.marks) == (27, [1, 3, 9, 27])
    pbt = TuneConfig(**run, space=config.space, rungs=3, scheduler="pbt", searcher="random")
    assert pbt.marks == [1, 2, 3, 4]


def test_a_smaller_budget_shrinks_all_that_is_counted_in_images():
    train = {"lr_decay": "linear", "lr_ref_images": 512, "lr_ramp_images": 64, "ema": {"p": {"power_std": 0.1}}}
    run = parse_project(merge(PARAMS, {"train": train})).run("sct")
    small = scaled(run, 256)
    assert (small.train.images, small.train.lr_ref_images, small.train.lr_ramp_images) == (256, 128, 16)
    assert small.train.ema["ema"].half_life == 50
    assert small.train.ema["p"].power_std == 0.1
    assert small.method_config.warmup_images == 25
    assert scaled(run, 1024) == run


def test_a_trial_is_the_run_with_its_values_and_what_is_found_is_of_full_length(root):
    job = make_job(root, "schedule")
    run = trial_run(job, VALUES)
    assert (run.method_config.q, run.train.lr, run.train.ema["ema"].half_life) == (4.0, 1e-3, 50)
    assert (run.train.images, run.train.seed, run.train.snapshots) == (512, 1001, 2)
    assert overrides(job.config, VALUES)["train"] == {"lr": 1e-3, "ema": {"ema": {"half_life": 100}}}


class StoppedError(Exception):
    pass


def scores_of(job, key, values=VALUES, stop_at=-1, **options) -> list[tuple[int, int, float]]:
    said = []

    def report(part, images, score):
        said.append((part, images, score))
        if images == stop_at:
            raise StoppedError

    run_trial(job, key, values, report, **options)
    return said


def test_a_stopped_trial_goes_on_to_the_same_scores(root):
    job = make_job(root, "schedule")
    whole = scores_of(job, "whole")
    assert [(part, images) for part, images, _ in whole] == [(1, 256), (2, 512)]
    with pytest.raises(StoppedError):
        scores_of(job, "cut", stop_at=256)
    assert Trial.load(trial_folder(job, "cut")).outcome == "running"
    # What arrived is not said again, what did not is.
    assert scores_of(job, "cut", reported=256) == whole[1:]
    assert scores_of(job, "cut", reported=256) == whole[1:]
    assert scores_of(job, "cut") == whole
    ended = Trial.load(trial_folder(job, "cut"))
    assert ended == Trial("cut", VALUES, {images: score for _, images, score in whole}, "finished")


def test_a_trial_that_takes_over_anothers_training_continues_from_there(root):
    job = make_job(root, "schedule", scheduler="pbt")
    with pytest.raises(StoppedError):
        scores_of(job, "donor", stop_at=256)
    source = trial_folder(job, "donor") / CHECKPOINT
    other = VALUES | {"train.lr": 2e-2}
    with pytest.raises(StoppedError):
        scores_of(job, "heir", values=VALUES | {"train.lr": 1e-2}, stop_at=256)
    rest = scores_of(job, "heir", values=other, reported=256, start=source)
    assert [images for _, images, _ in rest] == [512]
    assert checkpoint.load(trial_folder(job, "heir") / CHECKPOINT)[1]["images"] == 512
    # The same training from the beginning has other scores: the first half was the donor's.
    assert scores_of(job, "alone", values=other)[1] != rest[0]
    same = scores_of(job, "copy", reported=256, start=source)
    assert same == scores_of(job, "donor", reported=256)


def test_values_that_do_not_go_together_end_a_trial_with_the_reason(root):
    job = make_job(root, "schedule", space={"options": {"stages": {"choice": [2, 3]}, "q": {"uniform": [2.0, 4e3]}}})
    values = {**VALUES, "options.stages": 3, "options.q": 3900.0}
    assert scores_of(job, "bad", values) == [(1, 0, WORST)]
    bad = Trial.load(trial_folder(job, "bad"))
    assert bad.outcome.startswith("impossible: runs.ect.options.stages: expected q^stages")
    assert ranked([bad, Trial("good", {}, {256: 5.0}, "stopped by asha")])[0].key == "good"


def test_a_diverging_trial_ends_with_the_reason(root, monkeypatch):
    from cmcore.train.gate import NonFiniteError

    job = make_job(root, "schedule")

    def diverge(*args, **kwargs):
        raise NonFiniteError("loss nan at step 3")

    monkeypatch.setattr(trials, "train_run", diverge)
    assert scores_of(job, "nan") == [(1, 0, WORST)]
    assert Trial.load(trial_folder(job, "nan")).outcome == "diverged: loss nan at step 3"


def test_ranking_prefers_trials_that_came_further():
    order = [
        Trial("a", {}, {1: 9.0, 2: 3.0}, "finished"),
        Trial("b", {}, {1: 2.0, 2: 4.0}, "finished"),
        Trial("c", {}, {1: 1.0}, "stopped by asha"),
        Trial("d", {}, {}, "error: lost"),
    ]
    assert ranked(order[::-1]) == order
    assert math.isclose(order[3].final, WORST)


def test_a_posthoc_search_tries_profiles_without_training_again(root):
    job = make_job(root, "widths")
    folder = train_once(job, posthoc_run(job, job.config.seed), "posthoc")
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    narrow, wide = (scores_of(job, str(std), {"std": std}) for std in (0.03, 0.25))
    assert narrow != wide
    assert [(part, images) for part, images, _ in narrow] == [(job.config.parts, 1024)]
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before
    changed = overrides(job.config, {"std": 0.2})
    found = parse_project(merge(PARAMS, {"runs": {"ect": changed}})).run("ect").train
    assert found.ema[found.eval_ema].power_std == 0.2


def test_confirmation_compares_the_found_profile_tracked_and_reconstructed(root):
    job = make_job(root, "widths")
    scores = confirm(job, {"std": 0.1}, seed=5)
    # 0.1 is one of the two stored profiles, so its reconstruction is the tracked average but for rounding.
    assert scores["reconstructed"] == pytest.approx(scores["after"], rel=1e-3)
    assert scores["before"] != scores["after"]


def test_confirmation_trains_the_full_run_with_the_seed_given(root):
    job = make_job(root, "schedule")
    scores = confirm(job, VALUES, seed=9)
    assert scores.keys() == {"before", "after"}
    assert confirm(job, VALUES, seed=9) == scores
    folders = list((job.folder / "confirm").iterdir())
    assert len(folders) == 2
    summaries = {path.parent.name: path.read_text() for path in job.folder.glob("confirm/*/final/summary.json")}
    assert all('"images": 1024' in text and '"seed": 9' in text for text in summaries.values())


def test_a_changed_search_has_another_folder(root):
    first = make_job(root, "schedule")
    assert make_job(root, "schedule", concurrency=3, confirm=[8]).folder == first.folder
    for changes in ({"trials": 5}, {"samples": 40}, {"seed": 2}):
        assert make_job(root, "schedule", **changes).folder != first.folder
    assert first.folder.name.endswith(search_fingerprint(first.project, first.config, first.inputs, first.reference))
