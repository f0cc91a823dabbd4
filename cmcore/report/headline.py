"""The comparison at a glance: a row per run, its distance at 1, 2 and 4 function evaluations and the best of more."""

import math
from collections.abc import Sequence
from dataclasses import replace

from cmcore.evaluate.records import MetricRecord, ReferenceFacts
from cmcore.numbers import rounded
from cmcore.report.captions import BASELINES, is_ranked, metric_title, start, title, unranked_text
from cmcore.report.cells import DASH, Cell, Column, Table, count, duration, marked, measured
from cmcore.report.readers import RunReport
from cmcore.report.seeds import ALPHA, Values, pooled, tied, values

FEW = (1, 2, 4)
MORE = "more"
EMPTY = Cell(DASH)


def headline(runs: Sequence[RunReport], reference: ReferenceFacts | None = None, data: str = "") -> Table:
    """One row per run that has distances.

    Where a run has two samplers of one cost, the better one stands for it. Marks as in the whole comparison: the best
    of a column, and all that are not significantly worse.
    """
    rows, samples, groups = [], list[dict[str, Values]](), list[str]()
    metric = "fid" if any(r.metric == "fid" for run in runs for r in run.records) else "fd"
    for run in runs:
        found = _best(pooled(run).records, metric)
        if not found:
            continue
        by_seed = values(run)
        samples.append({key: by_seed[_row(record), metric] for key, record in found.items()})
        facts, time = run.facts, run.time
        # Every row is a group of its own: there is one mark, for the best of a column.
        groups.append(facts.run if is_ranked(run) else "")
        rows.append(
            (
                Cell(facts.run),
                Cell(title(facts.method)),
                *(_cell(found.get(str(nfe))) for nfe in FEW),
                _cell(found.get(MORE), with_cost=True),
                Cell(start(facts)),
                count(facts.images),
                duration(time.seconds) if time is not None and time.device else EMPTY,
            )
        )
    name = next((r.name for run in runs for r in run.records if r.metric == metric), metric_title(metric))
    columns = (
        Column("run", "Run"),
        Column("method", "Method"),
        *(Column(str(nfe), f"{nfe} NFE", "low") for nfe in FEW),
        Column(MORE, "Best of more (NFE)", "low"),
        Column("init", "Starts from"),
        Column("images", "Images seen"),
        Column("seconds", "Wall time"),
    )
    table = Table("headline", f"{name} by number of function evaluations", columns, tuple(rows), "", tuple(groups))

    def tied_rows(key: str, inside: Sequence[int], best: int, group: bool) -> set[int]:
        del group
        return {inside[at] for at in tied([samples[row][key] for row in inside], inside.index(best), every_pair=False)}

    several = any(run.replicates for run in runs)
    table = marked(table, tied_rows if several else None)
    return replace(table, caption=_caption(runs, reference, name, data, metric))


def _row(record: MetricRecord) -> tuple[int, str]:
    return record.provenance.nfe, record.provenance.sampler


def _best(records: Sequence[MetricRecord], metric: str) -> dict[str, MetricRecord]:
    """The least distance at each of the few numbers of function evaluations, and over all larger ones."""
    found: dict[str, MetricRecord] = {}
    for record in records:
        nfe = record.provenance.nfe
        key = str(nfe) if nfe in FEW else MORE if nfe > FEW[-1] else ""
        if record.metric == metric and key and record.value < (found[key].value if key in found else math.inf):
            found[key] = record
    return found


def _cell(record: MetricRecord | None, *, with_cost: bool = False) -> Cell:
    if record is None:
        return EMPTY
    cell = measured(record.value, record.spread)
    return Cell(f"{cell.text} ({record.provenance.nfe})", cell.value, cell.spread) if with_cost else cell


def _caption(runs: Sequence[RunReport], reference: ReferenceFacts | None, name: str, data: str, metric: str) -> str:
    seeds = sorted({1 + len(run.replicates) for run in runs})
    scored = [r.provenance for run in runs for r in run.records if r.metric == metric]
    if not scored:
        return ""
    samples = ", ".join(map(str, sorted({p.samples for p in scored})))
    baselines = [r for r in (reference.baseline if reference else ()) if r.metric == metric]
    parts = [
        f"{name} on {data or scored[0].workload}, {samples} samples per row; lower is better.",
        f"± is the standard deviation over training seeds ({', '.join(map(str, seeds))} per run). Bold: the best of "
        f"its column, and all that paired t-tests with Holm's correction cannot tell from it at {ALPHA:.0%}."
        if seeds != [1]
        else "One training seed per run: ± is the spread of the samples alone, so close rows are not ranked by it. "
        "Bold: the best of its column.",
        unranked_text(runs),
        *(f"{BASELINES.get(r.provenance.run, r.provenance.run)}: {rounded(r.value)[0]}." for r in baselines),
        f"Two halves of the real images: {rounded(reference.halves)[0]}." if reference and reference.halves else "",
        "Images and wall time are the run's own, without those of the run that it starts from.",
    ]
    return " ".join(part for part in parts if part)
