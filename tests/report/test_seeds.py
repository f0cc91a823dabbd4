"""Training seeds in tables: statistics with known answers, and marks that several rows share."""

import json
import math
import warnings
from collections.abc import Callable
from dataclasses import replace

import pytest

from cmcore.report.cells import DASH, Table
from cmcore.report.formats import csv_text, latex, markdown
from cmcore.report.headline import best, entries, headline
from cmcore.report.readers import Inputs, read_reference, read_runs
from cmcore.report.seeds import decided, holm, p_value, pooled, tied, values
from cmcore.report.tables import by_training_seed, comparison, differences
from cmcore.report.tabulate import tabulate

A = {1: 1.0, 2: 2.0, 3: 3.0, 4: 4.0, 5: 5.0}
B = {1: 1.5, 2: 2.4, 3: 3.6, 4: 4.5, 5: 5.5}  # above A by 0.5 on average, with a deviation of 0.0707


def test_paired_differences_of_known_significance():
    """t = 0.5 / (sqrt(0.02 / 4) / sqrt(5)) with 4 degrees of freedom, whose distribution function is closed."""
    t = 0.5 / math.sqrt(0.02 / 4 / 5)
    x = t / math.sqrt(4 + t * t)
    assert p_value(A, B) == pytest.approx(1 - (1.5 * x - 0.5 * x**3), rel=1e-6)
    assert p_value(A, B) < 0.001


def test_welch_where_seeds_differ():
    """The same values under other seeds: their spread of 1.6 hides the difference."""
    p = p_value(A, {seed + 10: value for seed, value in B.items()})
    assert 0.6 < p < 0.7


def test_values_that_no_test_can_judge():
    warnings.simplefilter("error")
    assert math.isnan(p_value({1: 1.0}, {1: 2.0}))
    assert p_value(A, A) == 1.0
    assert 0 < p_value({1: 1.0, 2: 2.0}, {1: 2.0, 2: 3.0}) < 1e-300, "the difference has no deviation at all"
    assert p_value({1: 3.0}, A) == pytest.approx(1.0)
    assert p_value({1: 30.0}, A) < 0.001


def test_holm_step_by_step():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


def test_the_number_of_comparisons_counts():
    near = {seed: value + shift for (seed, value), shift in zip(A.items(), (0.2, -0.1, 0.3, 0.1, 0.1), strict=True)}
    close = {seed: value + shift for (seed, value), shift in zip(A.items(), (0.1, 0.3, 0.1, 0.4, 0.3), strict=True)}
    assert p_value(A, close) == pytest.approx(0.0161, abs=1e-4)
    assert decided([A, close]) == {(0, 1)}
    assert decided([close, A]) == {(1, 0)}
    also = {seed: near[seed] + shift for seed, shift in zip(near, (0, 0.1, -0.1, 0.1, -0.1), strict=True)}
    assert (0, 1) not in decided([A, close, near, also]), "one of six pairs, not of one"
    assert decided([A, B, {seed: 10 * value for seed, value in A.items()}], best=0) == {(0, 1), (0, 2)}
    assert tied([A, B, near], 0, every_pair=True) == {0, 2}
    assert tied([{1: 1.0}, {1: 2.0}], 0, every_pair=True) == {0}


def add_seeds(inputs: Inputs, shifts: dict[str, tuple[float, ...]]) -> None:
    """Give runs further seeds, whose fd are those of the first one plus these shifts."""
    for run, further in shifts.items():
        path = inputs.metrics / f"{run}.json"
        data = json.loads(path.read_text())
        data["replicates"] = [
            {
                "seed": 2 + place,
                "records": [
                    record | ({"value": record["value"] + shift} if record["metric"] == "fd" else {})
                    for record in data["records"]
                ],
            }
            for place, shift in enumerate(further)
        ]
        path.write_text(json.dumps(data))


@pytest.fixture
def seeded(workload: Callable[..., Inputs]) -> Inputs:
    """ECT and sCD (4.4 and 5.0) vary by more than they differ; CT (14.8) is far away from both."""
    inputs = workload("edm", "cd", "ct", "ict", "ect", "sct", "scd")
    wide, other = (1.0, -1.0, 0.5, -0.5), (-1.0, 1.0, -0.5, 0.5)
    add_seeds(inputs, {"ect": wide, "scd": other, "ct": wide, "cd": wide, "ict": other, "sct": other, "edm": wide})
    return inputs


def cell(table: Table, key: str, run: str, nfe: int):
    keys = [column.key for column in table.columns]
    return next(row[keys.index(key)] for row in table.rows if row[0].text == run and row[2].value == nfe)


def test_the_comparison_shows_mean_and_deviation_over_seeds(seeded: Inputs) -> None:
    runs = read_runs(seeded)
    table = comparison(runs)
    ect = cell(table, "fd", "ect", 1)
    assert ect.value == pytest.approx(4.4)
    assert ect.spread == pytest.approx(math.sqrt(2.5 / 4))
    assert ect.text == "4.4 ± 0.8"
    assert pooled(runs[0]).records[0].spread_of == "training seeds"
    assert len(values(runs[0])[(35, "heun"), "fd"]) == 5
    assert "Values are mean ± standard deviation over training seeds (5 per run)." in table.caption
    assert "1, 2, 3, 4, 5 for training" in table.caption
    assert "Typical spread of the samples of one training: fd (bootstrap)" in table.caption


def test_the_headline_has_a_row_per_run_and_ties(seeded: Inputs) -> None:
    table = headline(read_runs(seeded), read_reference(seeded.reference), "digits")
    keys = [column.key for column in table.columns]
    rows = {row[0].text: dict(zip(keys, row, strict=True)) for row in table.rows}
    assert list(rows) == ["ect", "scd", "sct", "cd", "ict", "ct", "edm"], "by the distance at one step"
    assert rows["ect"]["1"].text == "4.4 ± 0.8"
    assert (rows["ect"]["4"].value, rows["ect"]["more"].value) == (None, None)
    assert rows["edm"]["more"].text.endswith("(35)")
    assert rows["ect"]["1"].best
    assert rows["scd"]["1"].best
    assert not rows["ct"]["1"].best
    assert "(5 per run)" in table.caption
    assert "Gaussian fit" in table.caption


def test_rows_of_different_numbers_of_seeds_say_their_own(seeded: Inputs) -> None:
    runs = [replace(run, replicates=()) if run.facts.run == "scd" else run for run in read_runs(seeded)]
    for table in (headline(runs), comparison(runs)):
        place = [column.key for column in table.columns].index("seeds")
        assert {row[0].text: row[place].text for row in table.rows} == {
            run.facts.run: "1" if run.facts.run == "scd" else "5" for run in runs
        }
        assert "5 per run" not in table.caption
    assert "± is the standard deviation over the training seeds of the row; with one, " in headline(runs).caption
    assert "over training seeds (as many as the row says)" in comparison(runs).caption


def test_the_headline_of_one_seed_marks_the_least_alone(workload: Callable[..., Inputs]) -> None:
    inputs = workload("edm", "ct", "ect", "scd")
    table = headline(read_runs(inputs))
    assert [row[0].text for row in table.rows if row[2].best] == ["ect"]
    assert table.caption.count("One training seed per run") == 1


def test_the_best_are_named_with_what_no_test_tells_from_them(seeded: Inputs) -> None:
    """ECT and sCD vary against each other by more than they differ; ICT (7.3) varies likewise and is further away."""
    table = best(read_runs(seeded))
    assert [column.head for column in table.columns][1:] == [
        "Best",
        "Not told apart from it",
        "First significantly worse",
    ]
    one, two, more = ([cell.text for cell in row] for row in table.rows)
    assert one[:2] == ["1", "ect 4.4 ± 0.8"]
    assert "scd 5.0 ± 0.8" in one[2].split(", ")
    assert one[3] == "cd 6.1 ± 0.8", "shifted by the same amounts as ECT, seed by seed"
    assert two[0] == "2"
    assert more == ["more", "edm 1.9 ± 0.8 (35)", DASH, DASH]


def test_the_best_of_one_seed_are_ranked_and_nothing_is_decided(workload: Callable[..., Inputs]) -> None:
    table = best(read_runs(workload("edm", "ct", "ect", "scd")))
    assert [cell.text for cell in table.rows[0]] == ["1", "ect 4.40 ± 0.11", "scd 5.00 ± 0.12", "ct 14.8 ± 0.4"]
    assert table.caption == "One training seed per run: no difference is decided."


def test_ranks_are_ranges_where_seeds_do_not_decide_them(seeded: Inputs) -> None:
    """Holm's correction over all 21 pairs at one step."""
    runs = read_runs(seeded)
    table = headline(runs)
    place = [column.key for column in table.columns].index("rank_1")
    ranks = {row[0].text: row[place].text for row in table.rows}
    assert (ranks["ct"], ranks["edm"]) == ("6", "7")
    assert ranks["ect"].startswith(f"1{DASH}")
    held = [entry for entry in entries(runs) if "1" in entry.found]
    pairs = decided([entry.by_seed["1"] for entry in held])
    for at, entry in enumerate(held):
        low, high = 1 + sum(b == at for _, b in pairs), len(held) - sum(a == at for a, _ in pairs)
        assert ranks[entry.run.facts.run] == (f"{low}{DASH}{high}" if low < high else str(low))
    assert "rank_1" in csv_text(table).splitlines()[0]
    assert "Rank" not in markdown(table)
    assert "Rank" not in latex(table)


def test_what_descends_the_distance_itself_is_shown_and_not_ranked(workload, monkeypatch) -> None:
    monkeypatch.setattr("cmcore.report.captions.unranked", lambda: ("ect",))
    runs = read_runs(workload("edm", "ct", "ect", "scd"))
    for table, place in ((headline(runs), 2), (comparison(runs), 3)):
        marks = {row[0].text: row[place].best for row in table.rows if row[place].value is not None}
        assert not marks["ect"]
        assert "Not ranked, as its loss is this distance itself: ect." in table.caption
    assert [row[0].text for row in headline(runs).rows if row[2].best] == ["scd"]
    assert [row[0].text for row in headline(runs).rows][-1] == "ect"
    assert "ect" not in "".join(cell.text for row in best(runs).rows for cell in row)


def test_rows_that_seeds_do_not_decide_share_the_mark(seeded: Inputs) -> None:
    table = comparison(read_runs(seeded))
    assert cell(table, "fd", "ect", 1).best_of_group
    assert cell(table, "fd", "scd", 1).best_of_group
    assert not cell(table, "fd", "ct", 1).best_of_group
    lower = {row[1].text: row[3].text for row in differences(read_runs(seeded)).rows if row[0].text == "1"}
    assert "ct" in lower["ect"].split(", ")
    assert "scd" not in lower["ect"].split(", ")


def test_one_seed_is_said_and_changes_nothing_else(workload: Callable[..., Inputs]) -> None:
    runs = read_runs(workload())
    table = comparison(runs)
    assert table.caption.endswith("how large a difference has to be to mean something is not known.")
    assert cell(table, "fd", "ect", 1).text == "4.40 ± 0.11"
    assert [pooled(run) for run in runs] == list(runs)


def test_every_seed_has_a_row_and_a_point(seeded: Inputs, workload: Callable[..., Inputs], tmp_path) -> None:
    table = by_training_seed(read_runs(seeded))
    fd = [column.key for column in table.columns].index("fd")
    found = [row[fd].value for row in table.rows if row[0].text == "ect" and row[1].value == 1]
    assert found == pytest.approx([4.4, 5.4, 3.4, 4.9, 3.9])
    path = seeded.metrics / "ect.json"
    data = json.loads(path.read_text())
    for record in data["replicates"][1]["records"]:
        record["provenance"]["fingerprint"] = "of the third seed"
    path.write_text(json.dumps(data))
    table = by_training_seed(read_runs(seeded))
    marks = [row[-1].text for row in table.rows if row[0].text == "ect" and row[1].value == 1]
    assert marks == ["ect" * 8, "ect" * 8, "of the third seed", "ect" * 8, "ect" * 8]
    written = tabulate(seeded, tmp_path / "several").files
    names = {path.name for path in written}
    assert {"seeds.md", "seeds.csv", "seeds.tex", "one_step_by_seed.svg", "one_step_by_seed.png"} <= names
    assert (tmp_path / "several/tables/seeds.csv").read_text() == csv_text(table)
    page = (tmp_path / "several/index.html").read_text()
    assert "Significant differences" in page
    assert "[[1,4.4],[2,5.4],[3,3.4],[4,4.9],[5,3.9]]" in page, "the provenance of a number names its seeds"


def test_with_one_seed_there_are_no_further_files(synthetic: Inputs, tmp_path) -> None:
    assert not [path for path in tabulate(synthetic, tmp_path).files if "seed" in path.name]
