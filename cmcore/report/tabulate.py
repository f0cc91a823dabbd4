"""From the records of a workload to its tables, figures and page. The same input twice gives the same bytes."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.figure import Figure

from cmcore.evaluate.records import MetricRecord
from cmcore.report import curves, figures
from cmcore.report.captions import commit, prompts, title
from cmcore.report.cells import DASH, Cell, Column, Table
from cmcore.report.editing import editing_section
from cmcore.report.foreign import comparable, read_foreign, sets
from cmcore.report.formats import csv_text, latex, markdown
from cmcore.report.guided import by_scale, quality_by_guidance
from cmcore.report.headline import best, entries, headline, leaders
from cmcore.report.page import Picture, Section, page
from cmcore.report.page_data import page_data
from cmcore.report.plots import save
from cmcore.report.published import DATASETS, Number, published
from cmcore.report.published_tables import compact, complete
from cmcore.report.readers import Inputs, RunReport, read_reference, read_runs
from cmcore.report.sounds import sounds
from cmcore.report.strips import SHOWN, Strip, strips
from cmcore.report.tables import beside, by_training_seed, comparison, differences, measures

# name of the file: caption, description for those who cannot see it, whether it takes the whole width
FIGURES = {
    "samples": (
        "Samples from the same noise: a row per run, a block per number of function evaluations, and the same noise in "
        "every block.",
        "Grid of generated images, one row per run.",
        True,
    ),
    "nearest": (
        "Samples (upper lines) and their nearest training images in pixels (lower lines): of the 64 samples that are "
        "kept, those nearest to a training image.",
        "Pairs of rows: generated images above the training images that are nearest to them.",
        True,
    ),
    "one_step_by_seed": (
        "One-step distance of every training seed, a point each; the bar is their mean.",
        "Strip plot of one-step Frechet distance, a line of points per run.",
        False,
    ),
    "quality_by_nfe": (
        "Distance against the number of function evaluations; lower and further left is better. Bars are the spread. "
        "Of many runs the three best at 1, 2, 4 and more evaluations are named; of several samplers the best counts.",
        "Line chart of Frechet distance against function evaluations, a line per run.",
        False,
    ),
    "quality_by_guidance": (
        "Distance against the scale of classifier-free guidance, for every number of function evaluations; lower is "
        "better. Dashed: the diffusion model without guidance, which counts twice where it is guided.",
        "Line charts of Frechet distance against the guidance scale, a panel per method, a line per NFE.",
        False,
    ),
    "level_scan": (
        "Two-step sampling: distance against the noise level of the second step. Ring: the least; dotted: the same "
        "run in one step.",
        "Line chart of two-step Frechet distance against the second noise level.",
        False,
    ),
    "quality_by_images": (
        "Distance of snapshots against the run's own training images. Of many runs the best are named.",
        "Line charts of Frechet distance against training images seen.",
        False,
    ),
    "training_curves": (
        "Training loss, pale as recorded and dark as a running mean. Losses of different methods have different "
        "scales.",
        "Line charts of training loss against training images seen, a panel per run.",
        False,
    ),
}
INTERACTIVE = ("samples", "quality_by_nfe", "level_scan", "quality_by_images", "training_curves")  # files of their own
PAGE = 1_000_000  # bytes that the page keeps below: what tables and figures leave of them is for the strips of samples
SAMPLES = "A row per run and number of function evaluations; each column starts from one noise image. A row enlarges."
SOUNDS = (
    "Samples as pictures of their mel frames, high bands above low ones, and as the sounds that the Griffin-Lim "
    "algorithm makes of them. A row per run: all were told the same words, with the same noise."
)


@dataclass(frozen=True)
class Written:
    """The files that `tabulate` wrote, and the headline table, below the best runs, as Markdown for a terminal."""

    files: tuple[Path, ...]
    headline: str


def tabulate(inputs: Inputs, out: Path, extra: Sequence[Section] = ()) -> Written:
    """Write tables/, figures/ and index.html under `out`; `extra` sections stand before the published numbers.

    The tables of `extra` are written to tables/ as well.

    Raises:
        ReportError: an input is missing, malformed, or not comparable with the others.
    """
    runs, reference, numbers = read_runs(inputs), read_reference(inputs.reference), published()
    foreign = read_foreign(inputs.scored, inputs.workload)
    shown = comparable(foreign, runs)
    rows = (*runs, *(one.run for one in shown))
    every = entries(rows)
    top, first, named = best(runs, every), headline(rows, reference, inputs.data, every), leaders(rows, every)
    ours = comparison(rows, reference, inputs.data)
    second, given = measures(rows, reference, inputs.seconds), (sets(foreign, shown),) if foreign else ()
    seconds = () if second is None else (second,)
    guided = by_scale(runs)
    scales = () if guided is None else (guided,)
    several = any(run.replicates for run in runs)
    decisions, each = ((differences(runs),), (by_training_seed(runs),)) if several else ((), ())
    both = beside(runs, numbers, inputs.workload if inputs.workload in DATASETS else "cifar10")
    quoted = compact(numbers)
    editing = editing_section(inputs.edits, runs, out / "figures")
    more = [table for section in (*editing, *extra) for table in (*section.tables, *section.folded)]
    files = _write_tables(
        out / "tables",
        (top, first, ours, *seconds, *scales, *decisions, *each, *given, both, *more),
        quoted,
        complete(numbers),
    )
    pictures = _draw(runs, reference.baseline if reference else (), named, out / "figures")
    variants = _ablations(runs, inputs, out / "figures")
    edited = tuple(picture for section in editing for picture in section.figures)
    files += [
        path for picture in (*pictures, *variants, *edited) for path in (picture.path, picture.path.with_suffix(".svg"))
    ]
    kept = tuple(picture for picture in pictures if picture.path.stem not in INTERACTIVE)
    data = page_data(rows, reference, inputs.operations, named)
    heard = sounds(runs) if inputs.seconds else ()
    told = "; ".join(prompts(runs, SHOWN))
    about = (SAMPLES, *([f"Told, from left to right: {told}."] if told else []))

    def with_strips(shown: tuple[Strip, ...]) -> str:
        sections = (
            Section(title="Our runs", tables=(top, first), folded=(ours, *seconds, *scales, *decisions)),
            Section(title="Quality", charts=True),
            Section(title="Samples from the same noise", text=about, strips=shown),
            *((Section(title="The samples as sounds", text=(SOUNDS,), sounds=heard),) if heard else ()),
            *((Section(title="More figures", figures=kept),) if kept else ()),
            *((Section(title="Ablations", figures=variants),) if variants else ()),
            *editing,
            Section(title="Beside the published numbers", tables=(both,), text=_beside_text(numbers)),
            *extra,
            Section(title="Published numbers", folded=quoted, published=True),
            Section(
                title="Provenance",
                tables=given,
                folded=(provenance(rows),),
                text=("Where every number comes from.",),
            ),
        )
        return page(f"Consistency models on {inputs.workload}", _intro(inputs, runs), sections, data)

    text = with_strips(strips(runs, PAGE - len(with_strips(()).encode())))
    index = out / "index.html"
    index.write_text(text, encoding="utf-8")
    glance = f"{markdown(top)}\n{markdown(first)}"
    (out / "tables" / "headline.md").write_text(glance, encoding="utf-8")
    return Written((*files, index), glance)


def _intro(inputs: Inputs, runs: Sequence[RunReport]) -> tuple[str, ...]:
    names = ", ".join(dict.fromkeys(title(run.facts.method) for run in runs))
    data = f" on {inputs.data}" if inputs.data else ""
    return (f"{len(runs)} runs ({names}){data}, trained and measured by this project.",)


def _beside_text(numbers: Sequence[Number]) -> tuple[str, ...]:
    return (
        f"Ours on the left of each row; on the right one of the {len(numbers)} published numbers listed further down.",
    )


def _write_tables(folder: Path, ours: Sequence[Table], quoted: Sequence[Table], every: Table) -> list[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    texts = {
        f"{t.name}.{end}": form(t) for t in ours for end, form in (("md", markdown), ("csv", csv_text), ("tex", latex))
    }
    texts["published.md"] = "\n".join(markdown(table) for table in quoted)
    texts["published.tex"] = "\n".join(latex(table) for table in quoted)
    texts["published.csv"] = csv_text(every)
    for name, text in texts.items():
        (folder / name).write_text(text, encoding="utf-8")
    return [folder / name for name in texts]


def _draw(
    runs: Sequence[RunReport], baseline: Sequence[MetricRecord], named: Collection[str], folder: Path
) -> tuple[Picture, ...]:
    drawn: dict[str, Figure | None] = {
        "samples": figures.samples(runs),
        "nearest": figures.nearest(runs),
        "one_step_by_seed": curves.one_step_by_seed(runs),
        "quality_by_nfe": curves.quality_by_nfe(runs, baseline, named),
        "quality_by_guidance": quality_by_guidance(runs),
        "level_scan": curves.level_scan(runs),
        "quality_by_images": curves.quality_by_images(runs, baseline),
        "training_curves": figures.training_curves(runs),
    }
    pictures = []
    for name, figure in drawn.items():
        if figure is None:
            for old in (folder / f"{name}.png", folder / f"{name}.svg"):
                old.unlink(missing_ok=True)
            continue
        caption, alt, wide = FIGURES[name]
        path, _ = save(figure, folder, name)
        pictures.append(Picture(path=path, caption=caption, alt=alt, wide=wide))
    return tuple(pictures)


def _ablations(runs: Sequence[RunReport], inputs: Inputs, folder: Path) -> tuple[Picture, ...]:
    """A figure for each comparison of variants, of which at least two have snapshots."""
    pictures = []
    for title_of, names in inputs.ablations.items():
        shown = [run for run in runs if run.facts.run in names and run.snapshots]
        figure = curves.quality_by_images(shown) if len(shown) > 1 else None
        if figure is None:
            continue
        slug = "".join(letter if letter.isalnum() else "_" for letter in title_of.lower())
        path, _ = save(figure, folder, f"ablation_{slug}")
        caption = f"{title_of}: distance of snapshots against training images; lower is better."
        alt = f"Line chart of Frechet distance against training images for {', '.join(names)}."
        pictures.append(Picture(path=path, caption=caption, alt=alt))
    return tuple(pictures)


def provenance(runs: Sequence[RunReport]) -> Table:
    """The source of every row of the comparison: metrics of one row that share all of it stand in one line."""
    heads = (
        *(
            "Run",
            "NFE",
            "Sampler",
            "EMA",
            "Samples",
            "Noise seed",
            "Fingerprint of the run",
            "Extractor",
            "Reference",
            "Code of the training",
            "Code of the evaluation",
        ),
        "Metrics",
    )
    found: dict[tuple[str, ...], list[str]] = {}
    for run in runs:
        for record in run.records:
            p = record.provenance
            digests = (p.fingerprint[:12], p.extractor_digest[:12], p.reference_digest[:12])
            code = tuple(commit(one) or DASH for one in (run.trained_by, run.evaluated_by))
            texts = (p.run, str(p.nfe or "not stated"), p.sampler, p.ema, str(p.samples), str(p.seed), *digests, *code)
            found.setdefault(texts, []).append(record.key)
    rows = tuple(tuple(map(Cell, (*texts, ", ".join(keys)))) for texts, keys in found.items())
    columns = tuple(Column(head.lower().replace(" ", "_"), head) for head in heads)
    return Table("provenance", "Provenance", columns, rows, "Digests and git commits are shortened to 12 digits.")
