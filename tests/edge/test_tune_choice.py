"""The space in Tune's words, and PBT's steps brought back into it. No Ray is started."""

from types import SimpleNamespace

import pytest

from cmcore.edge.tune_choice import domain, explored, scheduler_of, searcher_of
from cmcore.search.space import Dimension, TuneConfig

pytest.importorskip("ray.tune")
DIMENSIONS = [
    Dimension("half_life", "loguniform", (100.0, 10_000.0)),
    Dimension("decay_like", "uniform", (0.9, 0.999)),
    Dimension("stages", "uniform", (2, 6)),
    Dimension("s1", "loguniform", (10, 640)),
    Dimension("step", "quniform", (0.5, 2.0, 0.25)),
    Dimension("weighting", "choice", ("gap", "edm")),
]


@pytest.mark.parametrize("dimension", DIMENSIONS, ids=lambda d: d.path)
def test_tune_draws_the_whole_range_and_nothing_else(dimension):
    drawn = [domain(dimension).sample() for _ in range(400)]
    cleaned = [dimension.clean(value) for value in drawn]
    if dimension.kind == "choice":
        assert set(drawn) == set(dimension.values)
        return
    assert all(abs(a - b) <= 5e-4 * abs(a) + 1e-9 for a, b in zip(drawn, cleaned, strict=True))
    positions = [dimension.position(value) for value in cleaned]
    assert min(positions) < 0.1
    assert max(positions) > 0.9
    if dimension.whole:
        assert {dimension.low, dimension.high} <= set(drawn) or dimension.path == "s1"


def test_a_half_life_is_drawn_evenly_in_its_logarithm():
    positions = [DIMENSIONS[0].position(domain(DIMENSIONS[0]).sample()) for _ in range(2000)]
    # The standard error of the mean of 2000 uniform numbers is 0.0065.
    assert sum(positions) / len(positions) == pytest.approx(0.5, abs=0.03)
    assert sum(p < 0.25 for p in positions) / len(positions) == pytest.approx(0.25, abs=0.04)


def test_pbt_cannot_leave_the_space():
    """Its steps of a factor 1.2 made a decay of 0.975 one of 1.17, with which an average explodes."""
    pushed = {
        "half_life": 12_000.0, "decay_like": 0.975 * 1.2, "stages": 7.2, "s1": 8, "step": 2.4, "weighting": "edm",
        "other": 1,
    }  # fmt: skip
    assert explored(DIMENSIONS, pushed) == {
        "half_life": 10_000.0, "decay_like": 0.999, "stages": 6, "s1": 10, "step": 2.0, "weighting": "edm", "other": 1,
    }  # fmt: skip


@pytest.mark.parametrize("scheduler", ["asha", "hyperband", "pbt", "none"])
def test_schedulers_know_the_rungs(scheduler):
    config = TuneConfig(
        base="a",
        init="b",
        teacher="none",
        space={"x": {"uniform": [0, 1]}},
        rungs=4,
        scheduler=scheduler,
        searcher="random",
    )
    made = scheduler_of(config)
    if scheduler == "none":
        assert made is None
    if scheduler == "asha":
        assert sorted(rung[0] for rung in made._brackets[0]._rungs) == config.marks
    assert searcher_of(config) is not None


def test_asha_stops_the_worse_trial_at_a_rung():
    config = TuneConfig(base="a", init="b", teacher="none", space={"x": {"uniform": [0, 1]}}, rungs=2)
    asha = scheduler_of(config)
    asha.set_search_properties("score", "min")
    trials = [SimpleNamespace(trial_id=name, status="RUNNING") for name in "abc"]
    for trial in trials:
        asha.on_trial_add(None, trial)
    said = [
        asha.on_trial_result(None, trial, {"part": 1, "score": score})
        for trial, score in zip(trials, (2, 9, 1), strict=True)
    ]
    assert said == ["CONTINUE", "STOP", "CONTINUE"]


def test_a_search_begins_with_the_points_that_are_given():
    space = {"options": {"q": {"uniform": [1.0, 9.0]}, "weighting": {"choice": ["gap", "none"]}}}
    first = {"options": {"q": 2.5, "weighting": "none"}}
    config = TuneConfig(base="a", init="b", teacher="none", space=space, start=(first,))
    searcher = searcher_of(config)
    searcher.set_search_properties("score", "min", {one.path: domain(one) for one in config.dimensions})
    assert searcher.suggest("1") == {"options.q": 2.5, "options.weighting": "none"}
    assert searcher.suggest("2") != searcher.suggest("1")
