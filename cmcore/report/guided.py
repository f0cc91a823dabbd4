"""Quality against the guidance scale, for every number of function evaluations."""

from collections.abc import Iterable, Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from cmcore.evaluate.records import MetricRecord
from cmcore.report.captions import is_high, metric_title, title
from cmcore.report.cells import DASH, Cell, Column, Table, count, measured
from cmcore.report.plots import QUIET, WIDTH, colour, label_ends, margin, marker, plain_log, style
from cmcore.report.readers import RunReport
from cmcore.report.seeds import pooled
from cmcore.report.tables import METRICS, by_sampler, check_comparable

MARK = ", guidance "  # between the name of a sampler and its scale
Line = list[tuple[float, MetricRecord]]  # scale and distance, ascending


def scale(record: MetricRecord) -> float:
    """The guidance scale of the record's samples; 1 is none."""
    _, mark, s = record.provenance.sampler.rpartition(MARK)
    return float(s) if mark else 1.0


def lines(records: Iterable[MetricRecord]) -> list[Line]:
    """Distances of the samplers of a method against the scale, in the order of their number of evaluations.

    A diffusion model is evaluated twice where it is guided, so the samplers of each scale are matched by their order.
    """
    by_s: dict[float, dict[tuple[int, str], MetricRecord]] = {}
    for record in records:
        if record.key == "fd":
            p = record.provenance
            by_s.setdefault(scale(record), {}).setdefault((p.nfe, p.sampler), record)
    found: list[Line] = []
    for s, rows in sorted(by_s.items()):
        for place, (_, record) in enumerate(sorted(rows.items())):
            found += [[]] * (place >= len(found))
            found[place] = [*found[place], (s, record)]
    return found


def quality_by_guidance(runs: Sequence[RunReport], columns: int = 2) -> Figure | None:
    """Frechet distance against the guidance scale: a panel for each method that was guided, a line for each NFE.

    Runs of one method stand in one panel, as each of them may have learned a scale of its own. The dashed line is the
    least distance of a diffusion model without guidance.
    """
    by_method: dict[str, list[MetricRecord]] = {}
    for run in runs:
        by_method.setdefault(run.facts.method, []).extend((*pooled(run).records, *run.guidance))
    shown = {m: lines(found) for m, found in by_method.items() if any(MARK in r.provenance.sampler for r in found)}
    if not shown:
        return None
    everything = [point for found in shown.values() for line in found for point in line]
    values = [record.value for _, record in everything]
    teachers = [record.value for s, record in everything if s == 1 and record.provenance.nfe > 8]
    rows = -(-len(shown) // columns)
    height = 0.65 + 1.75 * rows
    with style():
        figure = Figure(figsize=(WIDTH, height))
        grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
        label = margin([_nfe(line) for found in shown.values() for line in found])  # a share of the width
        left, ticks = 0.12, 0.08
        panel = (1 - left - columns * label - (columns - 1) * ticks) / columns
        figure.subplots_adjust(
            left, 0.5 / height, 1 - label, 1 - 0.28 / height, hspace=0.3, wspace=(label + ticks) / panel
        )
        for axes in grid.flat[len(shown) :]:
            axes.set_axis_off()
        for axes, (method, found) in zip(grid.flat, shown.items(), strict=False):
            axes.set_yscale("log")
            axes.set_ylim(0.85 * min(values), 1.15 * max(values))
            axes.set_title(title(method))
            axes.tick_params(labelsize=8, labelbottom=True, labelleft=True)
            if teachers:
                axes.axhline(min(teachers), color=QUIET, linestyle="--", linewidth=1)
            for place, line in enumerate(found):
                x = [s for s, _ in line]
                y, spread = (np.array([getattr(record, key) for _, record in line]) for key in ("value", "spread"))
                bars = np.stack([np.minimum(spread, 0.9 * y), spread])
                axes.errorbar(x, y, yerr=bars, color=colour(place), marker=marker(place), markersize=4, capsize=2)
            axes.xaxis.set_major_locator(MaxNLocator(5))
            plain_log(axes)
        for axes, found in zip(grid.flat, shown.values(), strict=False):
            label_ends(axes, [(line[-1][0], line[-1][1].value, _nfe(line), colour(k)) for k, line in enumerate(found)])
        figure.supxlabel("guidance scale (1: none)", fontsize=10, y=0.06 / height)
        figure.supylabel(next(record.name for _, record in everything), fontsize=9, x=0.005)
    return figure


def by_scale(runs: Sequence[RunReport]) -> Table | None:
    """The numbers behind the figure: a row per run, number of function evaluations and scale; None without any."""
    guided = [r for r in runs if any(MARK in one.provenance.sampler for one in (*r.records, *r.guidance))]
    found = [
        (run, nfe, scale(next(iter(of.values()))), of)
        for run in guided
        for (nfe, _), of in by_sampler((*pooled(run).records, *run.guidance)).items()
    ]
    if not found:
        return None
    check_comparable([record for run in guided for record in (*run.records, *run.guidance)])
    known = {record.key for run in guided for record in run.guidance} or {"fd"}
    metrics = [m for m in METRICS if m in known]
    columns = (
        *(Column(key, head) for key, head in (("run", "Run"), ("nfe", "NFE"), ("scale", "Guidance scale"))),
        *(Column(m, metric_title(m), "high" if is_high(m) else "low") for m in metrics),
    )
    rows = [
        (
            Cell(run.facts.run), count(nfe), Cell(f"{s:g}", s),
            *(measured(of[m].value, of[m].spread) if m in of else Cell(DASH) for m in metrics),
        )
        for run, nfe, s, of in sorted(found, key=lambda row: (guided.index(row[0]), *row[1:3]))
    ]  # fmt: skip
    text = "A scale of 1 is no guidance. ± is a spread of the samples; one training seed each."
    return Table("guidance", "Other guidance scales", columns, tuple(rows), text)


def _nfe(line: Line) -> str:
    return "/".join(map(str, sorted({record.provenance.nfe for _, record in line}))) + " NFE"
