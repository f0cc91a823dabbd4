"""Figures and the page: complete, the same bytes twice, and needing nothing from outside."""

import json
import re
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.backends.backend_agg import FigureCanvasAgg
from PIL import Image

from cmcore.report import curves, figures
from cmcore.report import tabulate as tabulation
from cmcore.report.bands import NOTE
from cmcore.report.cells import Cell, Column, Table
from cmcore.report.gallery import Edit, Edited, gallery
from cmcore.report.page import Picture, Section, page
from cmcore.report.plots import apart, canvas
from cmcore.report.readers import Inputs, ReportError, read_reference, read_runs
from cmcore.report.tabulate import Written, tabulate

TABLES = ("best", "headline", "comparison", "measures", "beside", "published")


@pytest.fixture(scope="module")
def written(synthetic: Inputs, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Written]:
    out = tmp_path_factory.mktemp("report")
    return out, tabulate(synthetic, out)


def test_everything_is_written(written: tuple[Path, Written]) -> None:
    out, result = written
    tables = {f"tables/{name}.{end}" for name in TABLES for end in ("md", "csv", "tex")}
    names = ("samples", "nearest", "quality_by_nfe", "level_scan", "quality_by_images", "training_curves")
    drawn = {f"figures/{name}.{end}" for name in names for end in ("png", "svg")}
    files = {str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()}
    assert files == tables | drawn | {"index.html"}
    assert {str(path.relative_to(out)) for path in result.files} == files
    assert result.headline == (out / "tables" / "headline.md").read_text()


def test_the_same_input_gives_the_same_bytes(written: tuple[Path, Written], synthetic: Inputs, tmp_path: Path) -> None:
    out, _ = written
    tabulate(synthetic, tmp_path)
    different = [
        str(p.relative_to(out))
        for p in out.rglob("*")
        if p.is_file() and p.read_bytes() != (tmp_path / p.relative_to(out)).read_bytes()
    ]
    assert different == []


def test_no_file_carries_a_date_or_a_version(written: tuple[Path, Written]) -> None:
    out, _ = written
    for path in (out / "figures").glob("*.svg"):
        assert not re.search(r"dc:date|matplotlib\.org|Matplotlib", path.read_text())
    for path in (out / "figures").glob("*.png"):
        with Image.open(path) as image:
            assert set(image.info) <= {"dpi"}


class Links(HTMLParser):
    """Collects tags, and everything in attributes that could reach out."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.targets: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.targets += [value or "" for name, value in attrs if name in ("src", "href", "srcset", "data", "action")]


def test_the_page_needs_nothing_else(written: tuple[Path, Written]) -> None:
    text = (written[0] / "index.html").read_text()
    links = Links()
    links.feed(text)
    assert links.targets
    assert all(re.match(r"data:image/(png|svg\+xml);base64,", target) for target in links.targets)
    assert not {"link", "iframe", "object"} & set(links.tags)
    assert "default-src 'none'; img-src data:;" in text, "a browser refuses everything that is not in the file"
    assert "url(" not in text
    assert "@import" not in text
    assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)", text)
    assert 'name="viewport"' in text
    assert "prefers-color-scheme: dark" in text
    assert len(text) < 1_000_000


def test_the_page_marks_what_is_published_and_shows_provenance(written: tuple[Path, Written]) -> None:
    text = (written[0] / "index.html").read_text()
    start = text.index("published, not measured here")
    assert text.index("<h2>Our runs") < text.index("<h2>Beside") < start < text.index("<h2>Provenance")
    assert text.index("arXiv 2303.01469", start) > start
    assert "ectectectect" in text


def test_the_page_escapes_what_it_is_given(tmp_path: Path) -> None:
    table = Table("t", "<b>", (Column("a", "<i>"),), ((Cell("<script>x</script>"),),), "<u>")
    text = page("<title>", ("<p>",), (Section(title="<h1>", text=("<a>",), tables=(table,)),))
    assert not re.search(r"<script>x|<u>|<i>|<a>", text)
    assert text.count("&lt;") >= 6


def test_extra_sections_stand_before_the_published_numbers(workload: Callable[..., Inputs], tmp_path: Path) -> None:
    tabulate(workload(), tmp_path / "out", extra=(Section(title="Search of the schedule", text=("found",)),))
    text = (tmp_path / "out" / "index.html").read_text()
    assert text.index("<h2>Our runs") < text.index("<h2>Search of the schedule") < text.index("<h2>Published numbers")


def test_strips_take_what_tables_and_figures_leave_of_the_page(
    synthetic: Inputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Shorter strips beside another figure, and where none fit the fewest images."""
    noise = np.random.default_rng(0).integers(0, 256, (200, 200, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "noise.png")
    extra = Section(title="Noise", figures=(Picture(path=tmp_path / "noise.png", caption="", alt="noise"),))

    def counts(limit: int, *more: Section) -> tuple[set[int], int]:
        monkeypatch.setattr(tabulation, "PAGE", limit)
        tabulate(synthetic, tmp_path / "report", more)
        text = (tmp_path / "report/index.html").read_bytes()
        return {int(found) for found in re.findall(rb'data-count="(\d+)"', text)}, len(text)

    every, size = counts(10**6)
    limit = size + 5_000
    assert counts(limit) == (every, size)
    (most,), (fewest,) = every, counts(limit - 10_000)[0]
    assert fewest < most
    assert counts(limit, extra)[0] == {fewest}
    assert counts(size + 200_000, extra)[0] == every


def test_figures_without_data_are_left_out_and_old_ones_removed(
    workload: Callable[..., Inputs], tmp_path: Path
) -> None:
    inputs = workload()
    tabulate(inputs, tmp_path / "out")
    for path in inputs.metrics.glob("*.json"):
        path.write_text(json.dumps(json.loads(path.read_text()) | {"scan": [], "snapshots": []}))
    tabulate(replace(inputs, runs=None, samples=None), tmp_path / "out")
    assert {path.stem for path in (tmp_path / "out" / "figures").iterdir()} == {"quality_by_nfe"}


def test_one_run_with_one_record_is_enough(workload: Callable[..., Inputs], tmp_path: Path) -> None:
    inputs = workload("ect")
    path = inputs.metrics / "ect.json"
    data = json.loads(path.read_text())
    path.write_text(
        json.dumps(
            data | {"records": data["records"][:1], "scan": data["scan"][:1], "snapshots": data["snapshots"][:1]}
        )
    )
    assert "| ect | ECT |" in tabulate(replace(inputs, reference=None), tmp_path / "out").headline


def test_many_runs_and_non_positive_losses_draw(workload: Callable[..., Inputs], tmp_path: Path) -> None:
    inputs = workload("edm", "cd", "ct", "ict", "ect", "sct", "scd")
    (inputs.runs / "sct" / "history.jsonl").write_text('{"images": 1, "loss": -0.5}\n{"images": 2, "loss": 0.5}\n')  # type: ignore[operator]
    runs = read_runs(inputs)
    assert figures.training_curves((*runs, *runs)) is not None
    assert curves.quality_by_nfe((*runs, *runs)) is not None


def test_samples_show_a_row_per_run_and_a_block_per_number_of_evaluations(synthetic: Inputs) -> None:
    runs = read_runs(synthetic)
    figure = figures.samples(runs, columns=3)
    assert figure is not None
    labels = [text.get_text() for text in figure.axes[0].texts]
    assert labels == ["teacher's ODE", "EDM", "CD", "CT", "iCT", "ECT", "sCT", "sCD", "1 NFE", "2 NFE", "more"]
    picture = np.asarray(figure.axes[0].images[0].get_array())
    side, block = picture.shape[0] // 8, picture.shape[1] // 3
    assert runs[0].samples is not None
    drawn = picture[side : side + 64, 2 * block : 2 * block + 64]
    assert np.array_equal(drawn[::8, ::8, 0], runs[0].samples["35 NFE"][0, 0]), "the best of more, at the last block"
    assert (picture[side : 2 * side, block : 2 * block] == 255).all(), "EDM has no row at two evaluations"


def test_captions_that_all_runs_were_told_stand_below_their_samples(synthetic: Inputs) -> None:
    told = ("a red circle", "$x^", "word " * 64)
    runs = [replace(run, told=told) for run in read_runs(synthetic)]
    figure = figures.samples(runs, columns=3)
    assert figure is not None
    notes = [text.get_text() for text in figure.texts]
    assert notes[:2] == ["1  a red circle", "2  $x^"]
    assert notes[2].startswith("3  word word")
    assert notes[2].endswith("...")
    assert len(notes[2]) < 100
    without = figures.samples(read_runs(synthetic), columns=3)
    mixed = figures.samples([replace(runs[0], told=()), *runs[1:]], columns=3)
    assert without is not None
    assert mixed is not None
    assert not without.texts
    assert not mixed.texts, "another run was told something else"
    high, low = figure.get_size_inches()[1], without.get_size_inches()[1]
    assert high == pytest.approx(low + 3 * NOTE)
    box, plain = (one.axes[0].get_position().height * one.get_size_inches()[1] for one in (figure, without))
    assert box == pytest.approx(plain)


def test_the_page_has_the_captions_as_text(synthetic: Inputs, tmp_path: Path) -> None:
    assert synthetic.samples is not None
    for file in synthetic.samples.glob("*.npz"):
        with np.load(file) as arrays:
            np.savez(file, **arrays, told=np.array(["<b>red</b>", "$x^"]))
    tabulate(synthetic, tmp_path / "out")
    text = (tmp_path / "out" / "index.html").read_text()
    assert "Told, from left to right: &lt;b&gt;red&lt;/b&gt;; $x^." in text


def test_a_gallery_is_drawn_by_the_same_bands(synthetic: Inputs) -> None:
    images = np.zeros((2, 3, 8, 8), np.uint8)
    one = Edited(model="edm", steps=10, nfe=9, images=images, error=0.25, standard_error=0.01, known_error=0.0)
    figure = gallery(images, [Edit(task="inpaint", known=images, results=[one])])
    labels = [text.get_text() for text in figure.axes[0].texts]
    assert labels == ["truth", "inpaint:\nknown", "edm, NFE 9\nerror 0.250 ± 0.010"]


def test_of_many_runs_the_best_are_named_and_the_others_pale(synthetic: Inputs) -> None:
    runs = read_runs(synthetic)
    every = curves.quality_by_nfe(runs)
    many = [replace(run, facts=replace(run.facts, run=f"{run.facts.run}{n}")) for run in runs for n in range(3)]
    few = curves.quality_by_nfe(many)
    assert every is not None
    assert few is not None
    assert sorted(text.get_text() for text in every.axes[0].texts) == sorted(
        ["EDM", "CD", "CT", "iCT", "ECT", "sCT", "sCD"]
    )
    assert {text.get_text()[:3] for text in few.axes[0].texts} == {"ect", "edm"}
    pale = [line for line in few.axes[0].lines if line.get_color() == curves.PALE]
    assert len(pale) == len(many) - 6


def test_small_images_are_enlarged_by_whole_factors() -> None:
    images = np.random.default_rng(0).integers(0, 256, (5, 1, 8, 8), dtype=np.uint8)
    row = canvas(images, 3)
    assert row.shape[0] >= 64
    space = row.shape[0] - 64
    second = row[:64, 64 + space : 128 + space]
    assert np.array_equal(second[::8, ::8, 0], images[1, 0])
    assert np.array_equal(second, second[::8, ::8].repeat(8, 0).repeat(8, 1))


def test_colours_keep_their_channels() -> None:
    image = np.zeros((1, 3, 32, 32), np.uint8)
    image[0, 1] = 200
    assert canvas(image, 1)[0, 0].tolist() == [0, 200, 0]


@pytest.mark.parametrize(
    "arrays",
    [
        {"nfe_1": np.zeros((2, 1, 8, 8), np.float32)},
        {"nfe_1": np.zeros((2, 8, 8, 3), np.uint8)},
        {"one": np.zeros((2, 1, 8, 8), np.uint8)},
    ],
)
def test_wrong_sample_arrays_are_refused(workload: Callable[..., Inputs], arrays: dict[str, np.ndarray]) -> None:
    inputs = workload("ect")
    np.savez(inputs.samples / "ect.npz", **arrays)  # type: ignore[operator]
    with pytest.raises(ReportError, match=r"ect.npz: .*expected uint8 \(N, 1 or 3, H, W\)"):
        read_runs(inputs)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12), st.floats(0.01, 0.2))
def test_labels_keep_apart_and_in_order(values: list[float], gap: float) -> None:
    placed = apart(values, gap)
    order = np.argsort(values, kind="stable")
    assert (np.diff(placed[order]) >= gap - 1e-9).all()
    assert placed.mean() == pytest.approx(np.mean(values), abs=1e-9)


def test_labels_that_have_room_stay() -> None:
    assert apart([0.9, 0.1, 0.5], 0.1).tolist() == [0.9, 0.1, 0.5]


def test_the_running_mean_keeps_constants_and_means_what_it_says() -> None:
    assert figures.smooth(np.full(50, 3.0)) == pytest.approx(3.0)
    y = np.arange(100.0)
    assert figures.smooth(y, 0.1)[50] == pytest.approx(y[45:56].mean())


@pytest.mark.parametrize(("baseline", "below"), [(1.0, False), (44.0, True)])
def test_the_name_of_a_baseline_stands_inside_the_chart(synthetic: Inputs, baseline: float, below: bool) -> None:
    """On the side of its line where there is room: an axis would run through it on the other."""
    record = replace(read_reference(synthetic.reference).baseline[0], value=baseline)
    figure = curves.quality_by_nfe(read_runs(synthetic), [record])
    assert figure is not None
    FigureCanvasAgg(figure).draw()
    axes = figure.axes[0]
    name = next(text for text in axes.texts if text.get_text() == "Gaussian fit").get_window_extent()
    assert axes.bbox.y0 < name.y0
    assert name.y1 < axes.bbox.y1
    assert (name.y1 < axes.transData.transform((1.0, baseline))[1]) == below


def test_variants_of_an_ablation_share_a_figure(workload, tmp_path):
    """A comparison of one run is none; a title names the file."""
    inputs = replace(workload(), ablations={"CD: solver": ("edm", "ect"), "alone": ("ect",)})
    out = tmp_path / "out"
    tabulate(inputs, out)
    assert {path.stem for path in (out / "figures").glob("ablation_*")} == {"ablation_cd__solver"}
    text = (out / "index.html").read_text(encoding="utf-8")
    assert "<h2>Ablations" in text
    assert "CD: solver: distance of snapshots" in text
    assert "alone:" not in text


def test_samples_stand_above_their_nearest_images_the_nearest_pair_first(synthetic: Inputs) -> None:
    run = read_runs(synthetic)[0]
    ours = np.arange(4, dtype=np.uint8)[:, None, None, None] * np.ones((1, 1, 8, 8), np.uint8)
    theirs = np.array([9, 1, 4, 3], np.uint8)[:, None, None, None] * np.ones((1, 1, 8, 8), np.uint8)
    one = replace(run, samples={"35 NFE": ours}, nearest={"35 NFE": theirs})
    figure = figures.nearest([one])
    assert figure is not None
    picture = figure.axes[0].images[0].get_array()
    assert [picture[10, 10 + 68 * column, 0] for column in range(4)] == [1, 3, 2, 0]
    assert [picture[80, 10 + 68 * column, 0] for column in range(4)] == [1, 3, 4, 9]
    assert figures.nearest([replace(run, nearest=None)]) is None
