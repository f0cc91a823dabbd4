"""The figure of quality against guidance: what is read from the names of samplers, and what is drawn."""

from collections.abc import Mapping
from dataclasses import replace

import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

from cmcore.evaluate.records import MetricRecord, RunMetrics
from cmcore.report.guided import by_scale, lines, quality_by_guidance, scale
from cmcore.report.readers import Inputs, RunReport, read_runs


@pytest.fixture(scope="module")
def runs(synthetic: Inputs) -> Mapping[str, RunReport]:
    return {run.facts.run: run for run in read_runs(synthetic)}


def fd(run: RunReport, nfe: int, s: float, value: float) -> MetricRecord:
    """A distance of the run at a scale."""
    known = next(record for record in run.records if record.key == "fd")
    sampler = known.provenance.sampler + (f", guidance {s}" if s != 1 else "")
    return replace(known, value=value, provenance=replace(known.provenance, nfe=nfe, sampler=sampler))


def guided(run: RunReport) -> RunReport:
    """The run, sampled at two more scales."""
    rows = {70: 2.0} if run.facts.run == "edm" else {1: 6.0, 2: 4.0}
    return replace(run, guidance=tuple(fd(run, nfe, s, s * value) for nfe, value in rows.items() for s in (1.5, 2.0)))


def test_the_scale_is_in_the_name_of_the_sampler(runs: Mapping[str, RunReport]):
    assert [scale(fd(runs["ect"], 1, s, 3.0)) for s in (1, 1.5)] == [1, 1.5]


def test_samplers_are_matched_by_their_order_as_a_guided_diffusion_model_counts_twice(runs: Mapping[str, RunReport]):
    edm = runs["edm"]
    records = [fd(edm, n, s, 10 * s + n) for s in (1, 3.0, 2.0) for n in ((9, 35) if s == 1 else (18, 70))]
    found = [[(s, one.provenance.nfe) for s, one in line] for line in lines([*records, *records])]
    assert found == [[(1, 9), (2, 18), (3, 18)], [(1, 35), (2, 70), (3, 70)]]


def test_methods_without_guidance_are_not_drawn(runs: Mapping[str, RunReport]):
    assert quality_by_guidance(list(runs.values())) is None
    figure = quality_by_guidance([guided(runs["edm"]), runs["ect"], guided(runs["scd"]), guided(runs["cd"])])
    assert figure is not None
    panels = [axes for axes in figure.axes if axes.axison]
    assert [axes.get_title(loc="left") for axes in panels] == ["EDM", "sCD", "CD"]
    assert [text.get_text() for text in panels[1].texts] == ["1 NFE", "2 NFE"]
    one_step = panels[1].containers[0][0]
    plain = next(record.value for record in runs["scd"].records if record.key == "fd")
    assert list(one_step.get_xdata()) == [1, 1.5, 2]
    assert list(one_step.get_ydata()) == pytest.approx([plain, 9.0, 12.0])


def test_no_label_is_cut_by_the_next_panel_or_the_edge(runs: Mapping[str, RunReport]):
    figure = quality_by_guidance([guided(runs["edm"]), guided(runs["scd"]), guided(runs["cd"])])
    assert figure is not None
    canvas = FigureCanvasAgg(figure)
    panels = [axes for axes in figure.axes if axes.axison]
    ends = [(text.get_window_extent(canvas.get_renderer()), axes) for axes in panels for text in axes.texts]
    assert panels[0].texts[0].get_text() == "1/70 NFE"
    left = panels[1].get_tightbbox(canvas.get_renderer())
    assert left is not None
    for box, axes in ends:
        assert box.x1 <= (left.x0 if axes in (panels[0], panels[2]) else figure.bbox.x1)


def test_runs_of_one_method_stand_in_one_panel(runs: Mapping[str, RunReport]):
    """Such as those that have learned one scale each."""
    ect = runs["ect"]
    other = replace(ect, facts=replace(ect.facts, run="ect_2"), records=tuple(fd(ect, n, 2.0, 3.0 / n) for n in (1, 2)))
    figure = quality_by_guidance([ect, other])
    assert figure is not None
    (axes,) = [axes for axes in figure.axes if axes.axison]
    assert [list(line[0].get_xdata()) for line in axes.containers] == [[1, 2], [1, 2]]


def test_the_table_has_a_row_for_every_scale(runs: Mapping[str, RunReport]):
    assert by_scale(list(runs.values())) is None
    table = by_scale([guided(runs["scd"]), runs["ect"]])
    assert table is not None
    rows = [(row[0].text, row[1].value, row[2].value, row[3].value) for row in table.rows]
    plain = [record.value for record in runs["scd"].records if record.key == "fd"]
    assert rows == [
        ("scd", 1, 1, plain[0]), ("scd", 1, 1.5, 9.0), ("scd", 1, 2, 12.0),
        ("scd", 2, 1, plain[1]), ("scd", 2, 1.5, 6.0), ("scd", 2, 2, 8.0),
    ]  # fmt: skip
    assert [column.key for column in table.columns] == ["run", "nfe", "scale", "fd"]


def test_records_at_other_scales_are_in_the_file_if_there_are_any(runs: Mapping[str, RunReport]):
    ect = runs["ect"]
    plain = RunMetrics(facts=ect.facts, records=ect.records)
    assert "guidance" not in plain.to_json()
    more = replace(plain, guidance=(fd(ect, 1, 2.0, 3.0),))
    assert RunMetrics.from_json(more.to_json()) == more
