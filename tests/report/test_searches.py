"""Searches in the report: what is said is what the files hold, also where the search made things worse."""

import csv
import json
import math
import statistics
from pathlib import Path

import pytest

from cmcore.report.importance import Axis, importances
from cmcore.report.readers import ReportError
from cmcore.report.search_files import write_search
from cmcore.report.search_sections import sections, verdict
from cmcore.report.searches import SearchResult, TrialResult, adopted, read_searches
from cmcore.report.tabulate import tabulate

BEST = {"runs": {"ect": {"train": {"lr": 1.0}, "options": {"distance": "l2"}}}}
WORSE = [{"seed": 11, "before": 2.0, "after": 2.5}, {"seed": 12, "before": 3.0, "after": 3.1}]
BETTER = [{"seed": one["seed"], "before": one["after"], "after": one["before"]} for one in WORSE]


def by_difference(*differences: float) -> list[dict[str, float]]:
    """Scores of 2 before, and of 2 plus a difference after, a seed each."""
    return [{"seed": seed, "before": 2.0, "after": 2.0 + d} for seed, d in enumerate(differences)]


def write(folder: Path, name: str = "lr", confirmed: list = WORSE, trials: int = 9) -> Path:
    """A search of `trials` trials, the last two of which did not come to their end."""
    rows = []
    for index in range(trials):
        x = index / (trials - 1)
        over = index < trials - 2
        scores = {1000: math.exp(x)} | ({2000: math.exp(x) / 2} if over else {})
        outcome = "finished" if over else "stopped by asha" if index < trials - 1 else "diverged: step 3: loss is nan"
        values = {"train.lr": 10**-x, "options.distance": "l2" if index % 2 else "l1"}
        rows.append(TrialResult(f"t{index}", values, scores, outcome))
    axes = [
        Axis("train.lr", 0.1, 1.0, lambda value: 1 + math.log10(value)),
        Axis("options.distance", "l1", "l2", lambda value: float(value == "l2")),
    ]
    metric = "fd of 64 samples at 1 NFE after 2000 images"
    result = SearchResult(name, "ect", metric, BEST, confirmed, importances(rows, axes), rows)
    write_search(result, axes, folder / name)
    return folder


def found(folder: Path, **options) -> SearchResult:
    (one,) = read_searches(write(folder, **options))
    return one


def table(out: Path, name: str) -> list[dict[str, str]]:
    with (out / "tables" / f"{name}.csv").open() as file:
        return list(csv.DictReader(file))


def test_the_report_shows_every_search(workload, tmp_path):
    write(tmp_path / "tune")
    write(tmp_path / "tune", "other", BETTER)
    out = tmp_path / "out"
    written = tabulate(workload(), out, sections(read_searches(tmp_path / "tune"), {}))
    text = (out / "index.html").read_text()
    assert text.index("<h2>Searches") < text.index("<h2>Search lr") < text.index("<h2>Search other")
    searches = text[text.index("<h2>Searches") :]
    for kind in ("png", "svg+xml"):  # the values and the trials of each search
        assert searches.count(f"data:image/{kind};base64,") == 2
    names = {f"search_{name}{part}" for name in ("lr", "other") for part in ("", "_values", "_trials")} | {"searches"}
    for file in (out / "tables" / f"{name}.{end}" for name in names for end in ("md", "csv", "tex")):
        assert file in written.files
        assert file.stat().st_size


def test_tables_hold_what_the_search_found(workload, tmp_path):
    out = tmp_path / "out"
    tabulate(workload(), out, sections([found(tmp_path / "tune")], {}))
    data = json.loads((tmp_path / "tune/lr/trials.json").read_text())
    trials = table(out, "search_lr_trials")
    assert [float(row["fd_1000"]) for row in trials] == [one["scores"]["1000"] for one in data["trials"]]
    assert [row["fd_2000"] for row in trials[-2:]] == ["–", "–"]
    assert [row["end"] for row in trials] == [one["outcome"] for one in data["trials"]]
    values = {row["parameter"]: row for row in table(out, "search_lr_values")}
    assert (values["train.lr"]["best"], values["train.lr"]["tried"]) == ("1", "0.1 to 1")
    assert values["options.distance"]["tried"] == "l1, l2"
    assert float(values["train.lr"]["importance"]) == data["importance"]["2000"]["train.lr"]


def test_the_difference_is_taken_seed_by_seed_with_its_spread(workload, tmp_path):
    out = tmp_path / "out"
    tabulate(workload(), out, sections([found(tmp_path / "tune")], {}))
    *seeds, mean = table(out, "search_lr")
    assert [float(row["difference"]) for row in seeds] == pytest.approx([0.5, 0.1])
    assert float(mean["difference"]) == pytest.approx(0.3)
    assert float(mean["difference_spread"]) == pytest.approx(statistics.stdev([0.5, 0.1]))
    (overview,) = table(out, "searches")
    assert (overview["difference"], overview["better_on"]) == (mean["difference"], "0 of 2 seeds")
    assert "| +0.3 ± 0.3 |" in (out / "tables/searches.md").read_text()


@pytest.mark.parametrize(
    ("confirmed", "said"),
    [
        (WORSE, "fd is 12% higher on the mean of 2 seeds, better on 0: too few to decide"),
        (
            by_difference(-0.4, -0.5, -0.6, -0.5, -0.5),
            "fd is 25% lower on the mean of 5 seeds, better on 5: a significant gain",
        ),
        (
            by_difference(0.4, 0.5, 0.6, 0.5, 0.5),
            "fd is 25% higher on the mean of 5 seeds, better on 0: a significant loss",
        ),
        (by_difference(-1, 1, -1, 1, -0.5), "better on 3: no significant difference (paired t-test, p = 0.84)"),
        ([], "not compared on other seeds"),
    ],
)
def test_the_verdict_is_honest(tmp_path, confirmed, said):
    assert said in verdict(found(tmp_path, confirmed=confirmed))


def test_a_search_without_other_seeds_has_no_comparison(workload, tmp_path):
    out = tmp_path / "out"
    tabulate(workload(), out, sections([found(tmp_path / "tune", confirmed=[])], {}))
    (overview,) = table(out, "searches")
    assert (overview["fd_before"], overview["better_on"], overview["other_seeds"]) == ("–", "–", "0")
    assert not (out / "tables/search_lr.csv").exists()


def test_ends_are_counted_by_reason(tmp_path):
    _, section = sections([found(tmp_path)], {})
    assert "9 trials of the run ect over lr, distance" in section.text[0]
    assert ": 7 finished, 1 stopped by asha, 1 diverged. " in section.text[0]


def test_adopted_is_what_the_parameter_file_says(tmp_path):
    search = found(tmp_path)
    entry = {"method": "ect", "train": {"lr": 1.0, "batch": 8}, "options": {"distance": "l2"}}
    assert adopted(search, {"ect": entry, "edm": {}})
    assert not adopted(search, {"ect": entry | {"train": {"lr": 2.0}}})
    assert not adopted(search, {})


def test_nothing_is_shown_where_nothing_was_searched(tmp_path):
    assert sections(read_searches(tmp_path / "missing"), {}) == ()
    # What a search writes at this moment is no result yet.
    write(tmp_path, ".lr.partial")
    assert read_searches(tmp_path) == []


@pytest.mark.parametrize("text", ["{", "[]", '{"name": "lr"}', '{"name": "a", "base": "b", "metric": "c", "best": 3}'])
def test_a_damaged_search_is_named(tmp_path, text):
    write(tmp_path)
    (tmp_path / "lr/trials.json").write_text(text)
    with pytest.raises(ReportError, match=r"lr/trials\.json: expected"):
        read_searches(tmp_path)
