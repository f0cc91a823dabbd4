"""The report of a search: importance against known dependences, ranked files that agree, stable figures."""

import csv
import json
import math

import numpy as np
import pytest

from cmcore.config import load_yaml
from cmcore.report.importance import Axis, explained, importances
from cmcore.report.search_figures import parallel
from cmcore.report.search_files import write_search
from cmcore.report.searches import SearchResult, TrialResult


def test_a_parabola_is_explained_whole_and_noise_not():
    rng = np.random.default_rng(0)
    x = rng.uniform(size=400)
    assert explained(x, (x - 0.3) ** 2) == pytest.approx(1)
    assert explained(x, rng.normal(size=400)) < 0.03
    assert explained(x, np.zeros(400)) == 0
    assert explained(np.full(400, 0.5), x) == 0


def test_the_share_of_a_sum_is_that_of_its_variance():
    """y = a + b with independent uniform a and b of variances 1/12 and 4/12: the shares are 1/5 and 4/5."""
    rng = np.random.default_rng(1)
    a, b = rng.uniform(size=(2, 4000))
    assert explained(a, a + 2 * b) == pytest.approx(0.2, abs=0.03)
    assert explained(b, a + 2 * b) == pytest.approx(0.8, abs=0.03)


def test_adjustment_keeps_few_trials_from_looking_like_knowledge():
    rng = np.random.default_rng(2)
    found = [explained(rng.uniform(size=6), rng.normal(size=6)) for _ in range(400)]
    plain_r2 = 2 / 5  # the mean R^2 of two useless columns and six points
    assert np.mean(found) < plain_r2


AXES = [Axis("train.lr", 0.1, 1.0, lambda value: -math.log10(value)), Axis("options.q", 0, 7, lambda _: 0.5)]


def trials(count: int = 8) -> list[TrialResult]:
    made = []
    for index in range(count):
        x = index / (count - 1)
        scores = {100: math.exp(x)} | ({200: math.exp(x) / 2} if index < count - 2 else {})
        outcome = "finished" if 200 in scores else "stopped by asha"
        made.append(TrialResult(f"t{index}", {"train.lr": 10**-x, "options.q": index}, scores, outcome))
    return made


def report(**changes) -> SearchResult:
    fields = {
        "name": "lr",
        "base": "ect",
        "metric": "fd at 1 NFE",
        "trials": trials(),
        "importance": importances(trials(), AXES),
        "best": {"runs": {"ect": {"train": {"lr": 1.0}}}},
        "confirmed": [{"seed": 7, "before": 2.0, "after": 1.0}],
    }
    return SearchResult(**{**fields, **changes})


def test_importance_is_told_for_every_rung_with_enough_trials():
    found = importances(trials(), AXES)
    assert found == {100: {"train.lr": 1.0, "options.q": 0.0}, 200: {"train.lr": 1.0, "options.q": 0.0}}
    assert set(importances(trials(7), AXES)) == {100}
    assert importances(trials(3), AXES) == {}


def test_files_agree_with_one_another(tmp_path):
    written = write_search(report(), AXES, tmp_path)
    assert all(path.stat().st_size for path in written)
    data = json.loads((tmp_path / "trials.json").read_text())
    with (tmp_path / "trials.csv").open() as file:
        table = list(csv.DictReader(file))
    assert [row["trial"] for row in table] == [one["trial"] for one in data["trials"]] == [f"t{i}" for i in range(8)]
    assert [float(row["fd at 100 images"]) for row in table] == [one["scores"]["100"] for one in data["trials"]]
    assert table[-1]["fd at 200 images"] == ""
    assert load_yaml(tmp_path / "best.yaml") == data["best"] == report().best
    page = (tmp_path / "index.md").read_text()
    assert "| 7 | 2 | 1 |" in page
    assert "stopped by asha" in page


def test_what_trials_say_is_text_in_every_file(tmp_path):
    found = [*trials(), TrialResult("=t8", {"train.lr": -0.5, "options.q": "@q"}, {100: 9.0}, "error: <b>|x|\n| y")]
    axes = [Axis(axis.path, axis.low, axis.high, lambda _: 0.5) for axis in AXES]
    write_search(report(trials=found, metric="fd\nruns: {}"), axes, tmp_path)
    with (tmp_path / "trials.csv").open() as file:
        row = list(csv.DictReader(file))[-1]
    assert (row["trial"], row["train.lr"], row["options.q"]) == ("'=t8", "-0.5", "'@q")
    page = (tmp_path / "index.md").read_text()
    assert r"error: &lt;b&gt;\|x\| \| y |" in page
    assert load_yaml(tmp_path / "best.yaml") == report().best


def test_the_same_search_gives_the_same_bytes(tmp_path):
    first, second = (write_search(report(), AXES, tmp_path / name) for name in ("a", "b"))
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]


def test_lines_meet_their_values():
    figure = parallel(report(), AXES)
    lines = [line for line in figure.axes[0].lines if len(line.get_xdata()) == 3]
    assert len(lines) == 8
    best = max(lines, key=lambda line: line.get_linewidth())
    np.testing.assert_allclose(best.get_ydata(), [0, 0.5, 0], atol=1e-12)


@pytest.mark.parametrize("kept", [[], [TrialResult("x", {}, {}, "error: lost")]])
def test_a_search_without_scores_still_has_figures(kept):
    parallel(report(trials=kept), AXES)
