"""Foreign sample sets in tables and page: marked, never ranked, and left out where they do not compare."""

import csv
import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from cmcore.evaluate.records import RunFacts, RunMetrics
from cmcore.report.captions import FOREIGN
from cmcore.report.cells import DASH
from cmcore.report.foreign import SampleSet, comparable, file_of, read_foreign, to_json
from cmcore.report.headline import headline
from cmcore.report.readers import Inputs, ReportError, read_reference, read_runs
from cmcore.report.tables import comparison, measures
from cmcore.report.tabulate import tabulate

DIGEST = "ab" * 32


def write(inputs: Inputs, name: str, fd: float, nfe: int = 0, **changes: str) -> Inputs:
    """A sample set with the records of the run ect at one evaluation, but for this distance."""
    folder = inputs.metrics.parent / "scored"
    ours = next(run for run in read_runs(inputs) if run.facts.run == "ect")
    own = {"run": name, "method": FOREIGN, "fingerprint": DIGEST, "nfe": nfe, "images": 0, "levels": ()}
    own |= {"sampler": "not stated", "ema": "not stated", "samples": 4000, **changes}
    records = tuple(
        replace(r, provenance=replace(r.provenance, **own), value=fd if r.metric == "fd" else r.value)
        for r in ours.records
        if r.provenance.nfe == 1 and r.metric != "endpoint_rmse"
    )
    facts = RunFacts(
        workload="synthetic", run=name, method=FOREIGN, init="not stated", parameters=0, images=0,
        ema="not stated", seed=0,
    )  # fmt: skip
    samples = SampleSet(name=name, kind="folder", digest=DIGEST, count=9000, measured=4000, nfe=nfe)
    folder.mkdir(exist_ok=True)
    file_of(folder, name).write_text(json.dumps(to_json(samples, RunMetrics(facts=facts, records=records))))
    return replace(inputs, scored=folder)


def cells(table, run: str) -> dict:
    keys = [column.key for column in table.columns]
    (row,) = [row for row in table.rows if row[0].text == run]
    return dict(zip(keys, row, strict=True))


@pytest.fixture
def given(workload: Callable[..., Inputs]) -> Inputs:
    """A set that is better than every run, whose evaluations nobody said; and one of two evaluations."""
    inputs = workload("edm", "ect", "sct")
    return write(write(inputs, "my model", 0.123456), "their model", 7.5, nfe=2)


def rows(inputs: Inputs):
    runs = read_runs(inputs)
    return [*runs, *(one.run for one in comparable(read_foreign(inputs.scored, "synthetic"), runs))]


def test_a_set_has_a_row_in_every_table_and_no_mark(given: Inputs):
    found, reference = rows(given), read_reference(given.reference)
    first, ours, second = headline(found, reference), comparison(found, reference), measures(found, reference)
    mine, theirs = cells(first, "my model"), cells(first, "their model")
    assert (mine["method"].text, mine["1"].value, mine["more"].value) == (FOREIGN, None, 0.123456)
    assert mine["more"].text.endswith(" (not stated)")
    assert (theirs["2"].value, theirs["more"].value) == (7.5, None)
    assert not mine["more"].best
    assert cells(first, "edm")["more"].best is False, "it is alone in its column"
    row = cells(ours, "my model")
    assert (row["method"].text, row["fd"].value, row["nfe"].text) == (FOREIGN, 0.123456, "not stated")
    assert {row[key].text for key in ("init", "images", "parameters")} == {"not stated"}
    assert not row["fd"].best
    assert sum(row[3].best for row in ours.rows) == 1
    assert second is not None
    assert cells(second, f"my model ({FOREIGN})")["nfe"].text == "not stated"
    for table in (first, ours):
        assert "Not ranked, as these samples were not drawn here: my model, their model." in table.caption
    assert "4000, 5000 samples per row" in ours.caption
    assert "4000, 5000 samples per row" in first.caption
    assert "EMA slow." in ours.caption


def test_the_runs_are_judged_as_without_it(given: Inputs):
    with_it, without = comparison(rows(given)), comparison(read_runs(given))
    assert [row for row in with_it.rows if row[1].text != FOREIGN] == list(without.rows)


def test_the_report_shows_where_it_comes_from(given: Inputs, tmp_path: Path):
    written = tabulate(given, tmp_path / "with")
    page = (tmp_path / "with/index.html").read_text()
    assert "Foreign sample sets" in page
    assert DIGEST in page
    assert "my model" in written.headline
    with (tmp_path / "with/tables/foreign.csv").open(newline="") as file:
        table = {row["samples"]: row for row in csv.DictReader(file)}
    mine = table["my model"]
    assert (mine["images"], mine["measured"], mine["nfe"], mine["sha256"]) == ("9000", "4000", "not stated", DIGEST)
    assert table["their model"]["nfe"] == "2"
    assert mine["rows"] == "shown"
    drawn = {path.name: path.read_bytes() for path in (tmp_path / "with/figures").glob("*.svg")}
    tabulate(replace(given, scored=None), tmp_path / "without")
    assert drawn == {path.name: path.read_bytes() for path in (tmp_path / "without/figures").glob("*.svg")}
    assert not (tmp_path / "without/tables/foreign.md").exists()


def test_what_was_measured_against_another_reference_is_left_out_and_says_so(given: Inputs, tmp_path: Path):
    """Else the tables of the runs could not be made before it is scored again."""
    stale = write(given, "old", 0.1, reference_digest="0" * 64)
    written = tabulate(stale, tmp_path)
    assert "| old |" not in written.headline
    assert re.search(r"\| old .*score it again", (tmp_path / "tables/foreign.md").read_text())


def test_seeds_of_the_runs_are_counted_without_it(given: Inputs):
    path = given.metrics / "ect.json"
    data = json.loads(path.read_text())
    data["replicates"] = [{"seed": 2, "records": data["records"]}]
    path.write_text(json.dumps(data))
    table = comparison(rows(given), read_reference(given.reference))
    caption = table.caption
    assert "training seeds (as many as the row says)" in caption
    place = [column.key for column in table.columns].index("seeds")
    seeds = {row[0].text: row[place].text for row in table.rows}
    assert [seeds[name] for name in ("ect", "edm", "my model", "Gaussian fit")] == ["2", "1", DASH, DASH]
    assert "my model" not in caption.partition("Significant")[2]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d["samples"].update(name="<script>alert(1)</script>"), "samples.name: expected 1 to 60 letters"),
        (lambda d: d["samples"].update(name="=cmd()"), "samples.name: expected 1 to 60 letters"),
        (lambda d: d["samples"].update(digest="cd" * 32), "expected records of the samples 'my model' alone"),
        (lambda d: d["samples"].update(nfe=1), "expected records of the samples 'my model' alone"),
        (lambda d: d["samples"].update(measured=0), "samples.measured: expected 1 to 9000"),
        (lambda d: d["metrics"].update(method="edm"), "expected records of the samples 'my model' alone"),
        (lambda d: d["metrics"]["records"][0]["provenance"].update(run="edm"), "expected records of the samples"),
        (lambda d: d.update(more=1), "expected the keys 'samples' and 'metrics'"),
    ],
)
def test_a_file_that_says_something_else_is_named(given: Inputs, change, message: str):
    path = file_of(given.metrics.parent / "scored", "my model")
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))
    with pytest.raises(ReportError, match=rf"my-model-\w+\.json: {message}"):
        read_foreign(given.scored, "synthetic")


def test_a_file_of_another_workload_or_place_is_refused(given: Inputs):
    with pytest.raises(ReportError, match="of workload 'synthetic'"):
        read_foreign(given.scored, "other")
    path = file_of(given.metrics.parent / "scored", "my model")
    path.rename(path.with_name("x.json"))
    with pytest.raises(ReportError, match=r"x\.json: expected the samples 'my model'"):
        read_foreign(given.scored, "synthetic")
    assert read_foreign(None, "synthetic") == []
