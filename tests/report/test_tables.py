"""The comparison is built from records, states how it was measured, and refuses what does not compare."""

import json
from collections.abc import Callable
from dataclasses import replace

import pytest

from cmcore.evaluate.records import MetricRecord, over_ranges, score_name
from cmcore.report.cells import DASH, Cell, Table
from cmcore.report.headline import headline
from cmcore.report.published import published
from cmcore.report.published_tables import compact, complete
from cmcore.report.readers import Inputs, ReportError, read_reference, read_runs
from cmcore.report.tables import beside, comparison, measures
from cmcore.train.timing import TrainingTime


@pytest.fixture(scope="module")
def ours(synthetic: Inputs) -> Table:
    return comparison(read_runs(synthetic), read_reference(synthetic.reference), synthetic.data)


def cell(table: Table, key: str, run: str, nfe: float | None) -> Cell:
    keys = [column.key for column in table.columns]
    rows = [row for row in table.rows if row[0].text == run and row[keys.index("nfe")].value == nfe]
    assert len(rows) == 1
    return rows[0][keys.index(key)]


def test_a_row_per_run_and_nfe_then_the_baseline(ours: Table) -> None:
    names = [(row[0].text, row[2].text) for row in ours.rows]
    assert names[:5] == [("edm", "1"), ("edm", "11"), ("edm", "35"), ("cd", "1"), ("cd", "2")]
    assert names[-1] == ("Gaussian fit", DASH)
    assert cell(ours, "fd", "Gaussian fit", None).value == 44.0


def test_values_levels_and_absences(ours: Table) -> None:
    assert cell(ours, "fd", "ect", 1).text == "4.40 ± 0.11"
    assert cell(ours, "two_step_level", "ect", 2).value == 0.8
    assert cell(ours, "two_step_level", "ect", 1).value is None
    assert cell(ours, "endpoint_rmse", "ict", 1).text == DASH
    assert cell(ours, "method", "sct", 1).text == "sCT"


def test_wall_time_and_device_of_the_training(workload: Callable[..., Inputs]) -> None:
    inputs = workload()
    assert inputs.times is not None
    (inputs.times / "edm.json").unlink()
    TrainingTime(seconds=9000.0, device="Abacus, 2 threads", workers=4).write(inputs.times / "ect.json")
    table = comparison(read_runs(inputs))
    assert cell(table, "seconds", "edm", 1).text == cell(table, "device", "edm", 1).text == DASH
    assert (cell(table, "seconds", "ect", 1).text, cell(table, "seconds", "ect", 2).value) == ("2.5\u202fh", 9000.0)
    assert cell(table, "device", "ect", 1).text == "4 x Abacus, 2 threads"
    (inputs.times / "ect.json").write_text('{"seconds": "many"}')
    with pytest.raises(ReportError, match=r"ect\.json: seconds"):
        read_runs(inputs)


def test_nothing_is_said_of_the_time_of_weights_that_others_trained(workload: Callable[..., Inputs]) -> None:
    inputs = workload()
    assert inputs.times is not None
    TrainingTime().write(inputs.times / "ect.json")
    assert cell(comparison(read_runs(inputs)), "seconds", "ect", 1).text == DASH


def test_weights_that_others_trained_start_from_nothing_of_ours(workload: Callable[..., Inputs]) -> None:
    inputs = workload()
    path = inputs.metrics / "edm.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"images": 0}))
    runs = read_runs(inputs)
    assert cell(comparison(runs), "init", "edm", 1).text == "a weight file"
    assert cell(comparison(runs), "init", "ect", 1).text == "edm"
    table = headline(runs)
    place = [column.key for column in table.columns].index("init")
    assert [row[place].text for row in table.rows] == ["edm", "a weight file"]


def test_a_run_that_is_another_with_an_adapter_says_so(workload: Callable[..., Inputs]) -> None:
    inputs = workload()
    path = inputs.metrics / "ect.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"images": 0}))
    assert cell(comparison(read_runs(inputs)), "init", "ect", 1).text == "edm, with an adapter"


def test_the_best_is_marked_overall_and_at_each_nfe(ours: Table) -> None:
    assert cell(ours, "fd", "edm", 35).best
    assert cell(ours, "recall", "edm", 35).best
    assert cell(ours, "fd", "ect", 1).best_of_group
    assert cell(ours, "fd", "ect", 2).best_of_group
    assert not cell(ours, "fd", "edm", 35).best_of_group


def test_the_missing_fid_says_why(ours: Table) -> None:
    assert next(column.head for column in ours.columns if column.key == "fid") == "FID (no Inception weights)"
    assert "No FID: the Inception weights are not present" in ours.caption


@pytest.mark.parametrize(
    "fact",
    [
        "synthetic rings, invented numbers: 1797 reference images, 5000 samples per row",
        "synthetic_cnn_0a1b2c3d (digest 0a1b2c3d)",
        "held-out accuracy 98.3%",
        "Seeds: 1 for the noise of the samples, 1 for training",
        "EMA slow",
        "fd: bootstrap, KID: subsets",
    ],
)
def test_the_caption_states_how_it_was_measured(ours: Table, fact: str) -> None:
    assert fact in ours.caption


def edit(inputs: Inputs, run: str, change: Callable[[dict], None]) -> None:
    path = inputs.metrics / f"{run}.json"
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))


def test_runs_measured_against_other_references_are_refused(workload: Callable[..., Inputs]) -> None:
    inputs = workload()

    def change(data: dict) -> None:
        for record in data["records"]:
            record["provenance"]["reference_digest"] = "beef" * 16

    edit(inputs, "ect", change)
    with pytest.raises(
        ReportError, match=r"fd: expected one extractor and one reference .* 'edm' .* 'ect'; evaluate them again"
    ):
        comparison(read_runs(inputs))


def test_unequal_sample_counts_are_said(workload: Callable[..., Inputs]) -> None:
    inputs = workload()
    edit(inputs, "ect", lambda data: [record["provenance"].update(samples=2000) for record in data["records"]])
    assert "2000, 5000 samples per row. The numbers of samples differ" in comparison(read_runs(inputs)).caption


def test_the_same_metric_twice_is_refused(workload: Callable[..., Inputs]) -> None:
    inputs = workload()
    edit(inputs, "ect", lambda data: data["records"].append(data["records"][0]))
    with pytest.raises(ReportError, match="run 'ect': fd at 1 NFE with 'multistep' stands twice"):
        comparison(read_runs(inputs))


def test_seed_ranges_show_mean_and_least(workload: Callable[..., Inputs]) -> None:
    inputs = workload()

    def change(data: dict) -> None:
        data["left_out"] = "No KID: the reference is published moments"
        for index, raw in enumerate(data["records"]):
            if raw["metric"] == "fd":
                found = MetricRecord.from_json(raw)
                several = [replace(found, value=value) for value in (3.0, 1.0, 2.0)]
                data["records"][index] = over_ranges(several, [0, 5000, 10_000]).to_json()

    edit(inputs, "ect", change)
    table = comparison(read_runs(inputs))
    mean, least = (cell(table, key, "ect", 1) for key in ("fd", "fd_least"))
    assert (mean.value, mean.spread, least.value) == (2.0, 1.0, 1.0)
    assert cell(table, "fd_least", "edm", 35).text == DASH
    assert next(column.head for column in table.columns if column.key == "fd_least").endswith(", least of 3")
    assert "fd: seed ranges" in table.caption
    assert "Values are means over 3 ranges" in table.caption
    assert "No KID: the reference is published moments." in table.caption


def test_an_inception_fid_fills_its_column_and_keeps_apart(workload: Callable[..., Inputs]) -> None:
    inputs = workload()

    def change(data: dict) -> None:
        data["fid_absent"] = ""
        for metric, value in (("fid", 12.3), ("kid", 0.5)):
            record = json.loads(json.dumps(data["records"][0])) | {"metric": metric, "value": value}
            del record["name"]
            record["provenance"] |= {"extractor": "inception", "extractor_digest": "6726825d" + "0" * 56}
            data["records"].append(record)

    edit(inputs, "ect", change)
    table = comparison([run for run in read_runs(inputs) if run.facts.run == "ect"])
    assert cell(table, "fid", "ect", 1).value == 12.3
    assert cell(table, "kid_inception", "ect", 1).value == 0.5
    assert cell(table, "kid", "ect", 1).value == pytest.approx(4.4 / 900)
    assert "No FID" not in table.caption


def test_ours_beside_published_matches_method_and_nfe(synthetic: Inputs) -> None:
    table = beside(read_runs(synthetic), published())
    found = {(row[0].text, row[1].value): (row[2].value, row[3].value, row[6].text, row[7].text) for row in table.rows}
    assert found["CD", 1][1:] == (3.55, "arXiv 2303.01469", "paper")
    assert found["EDM", 35][1:] == (1.97, "arXiv 2206.00364, Table 2 (read in NVlabs/edm, README)", "repository")
    assert found["EDM", 1][1] is None
    assert found["sCT", 2][:2] == (pytest.approx(0.72 * 5.2), 2.06)
    assert "another feature space" in table.caption


def test_the_published_tables_hold_every_number() -> None:
    numbers = published()
    shown = compact(numbers)
    assert len(complete(numbers).rows) == len(numbers)
    assert all(table.published for table in shown)
    text = "".join(f" {value.text} " for table in shown for row in table.rows for value in row)
    assert [n.text for n in numbers if f" {n.text}" not in text] == []
    assert sum(len(table.rows) for table in shown) == len({n.row for n in numbers})


def test_runs_come_in_the_order_of_the_parameter_file_and_none_that_it_lacks(synthetic: Inputs) -> None:
    names = [run.facts.run for run in read_runs(replace(synthetic, order=("ict", "edm")))]
    assert names == ["ict", "edm"]
    names = [run.facts.run for run in read_runs(replace(synthetic, order=()))]
    assert names == ["cd", "ct", "ect", "edm", "ict", "scd", "sct"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: data.pop("method"), r"ect.json: method: is missing"),
        (lambda data: data.update(colour="red"), r"ect.json: colour: unknown key"),
        (lambda data: data.update(run="cd"), r"expected run 'ect' of workload 'synthetic', got run 'cd'"),
        (lambda data: data.update(records=[]), r"expected at least one record"),
        (lambda data: data["records"][0].update(value=float("nan")), r"ect.json: records: .*finite"),
        (lambda data: data["records"][0]["provenance"].pop("extractor"), r"ect.json: records: .*extractor: is missing"),
    ],
)
def test_malformed_metrics_are_refused_with_the_file(
    workload: Callable[..., Inputs], change: Callable[[dict], None], message: str
) -> None:
    inputs = workload()
    edit(inputs, "ect", change)
    with pytest.raises(ReportError, match=message):
        read_runs(inputs)


def test_other_malformed_files_are_refused(workload: Callable[..., Inputs]) -> None:
    inputs = workload()
    (inputs.metrics / "ect.json").write_text("{")
    with pytest.raises(ReportError, match=r"ect.json: expected a JSON file"):
        read_runs(inputs)
    (inputs.metrics / "ect.json").unlink()
    (inputs.runs / "edm" / "history.jsonl").write_text('{"images": 1}\n')  # type: ignore[operator]
    with pytest.raises(ReportError, match=r"history.jsonl: expected the keys 'images' and 'loss'"):
        read_runs(inputs)
    with pytest.raises(ReportError, match="run the evaluate stage first"):
        read_runs(replace(inputs, metrics=inputs.metrics / "none"))


def test_measures_stand_in_a_table_of_their_own_with_real_images_below(synthetic: Inputs) -> None:
    runs, reference = read_runs(synthetic), read_reference(synthetic.reference)
    table, first = measures(runs, reference), comparison(runs, reference)
    assert table is not None
    assert [column.key for column in table.columns] == [
        "run", "nfe", "fd_infinity", "coverage", "authenticity", "memorised", "latency", "images_per_second"
    ]  # fmt: skip
    assert not {"fd_infinity", "coverage", "memorised"} & {column.key for column in first.columns}
    assert "jackknife" not in first.caption
    assert [row[0].text for row in table.rows[-2:]] == ["Gaussian fit", "half of the training images"]
    assert cell(table, "coverage", "half of the training images", None).value == 0.98
    assert cell(table, "fd_infinity", "ect", 1).text == "4.10 ± 0.10"
    assert cell(table, "coverage", "edm", 35).best
    assert not any(row[4].best or row[4].best_of_group for row in table.rows), "neither end of authenticity is good"
    assert cell(table, "latency", "ect", 2).text == "2"
    assert not any(cell.best for row in table.rows for cell in row[-2:]), "times are facts of a machine"
    assert cell(table, "images_per_second", "ect", 1).value == 9e3
    assert "Abacus, 1 thread" in table.caption
    assert "the first 1000 samples" in table.caption


def test_measures_of_different_references_do_not_stand_side_by_side(synthetic: Inputs) -> None:
    runs = read_runs(synthetic)
    other = replace(runs[0].records[0].provenance, reference_digest="beef" * 16)
    changed = tuple(
        replace(record, provenance=other) if record.metric == "coverage" else record for record in runs[0].records
    )
    with pytest.raises(ReportError, match="coverage: expected one extractor and one reference"):
        measures([replace(runs[0], records=changed), *runs[1:]])


def test_distances_in_other_features_have_columns_of_their_own(synthetic: Inputs) -> None:
    """And neither the figures nor the captions take them for the workload's own."""
    runs = []
    for run in read_runs(synthetic):
        changes = {"extractor": "dinov2_vitl14_0123abcd", "extractor_digest": "0123abcd" * 8}
        more = [
            replace(record, value=record.value * 10, provenance=replace(record.provenance, **changes))
            for record in run.records
            if record.metric in ("fd", "kid", "coverage")
        ]
        runs.append(replace(run, records=(*run.records, *more)))
    table, second = comparison(runs), measures(runs)
    assert second is not None
    heads = {column.key: column.head for column in table.columns}
    assert heads["fd_dinov2"] == "fd_dinov2_vitl14_0123abcd"
    assert heads["kid_dinov2"] == "KID (DINOv2)"
    assert cell(table, "fd_dinov2", "ect", 1).value == pytest.approx(44.0)
    assert cell(table, "fd", "ect", 1).value == pytest.approx(4.4)
    assert table.caption == comparison(read_runs(synthetic)).caption
    assert "coverage_dinov2" in {column.key for column in second.columns}
    assert {score_name(record) for record in runs[0].records} >= {"fd_nfe1", "fd_dinov2_nfe1"}


def test_a_report_of_older_records_has_no_second_table(synthetic: Inputs) -> None:
    old = ("fd", "kid", "precision", "recall", "score")
    runs = [
        replace(run, sampling=None, records=tuple(record for record in run.records if record.metric in old))
        for run in read_runs(synthetic)
    ]
    assert measures(runs) is None
