"""The comparison at a glance: a row per run, its distance at 1, 2 and 4 function evaluations and the best of more."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from cmcore.evaluate.records import MetricRecord, ReferenceFacts
from cmcore.numbers import rounded
from cmcore.report.captions import BASELINES, FOREIGN, is_foreign, is_ranked, metric_title, start, title, unranked_text
from cmcore.report.cells import DASH, Cell, Column, Table, count, duration, marked, of_record
from cmcore.report.readers import RunReport
from cmcore.report.seeds import ALPHA, SEEDS, Values, decided, pooled, seeds_differ, seeds_of, tied, values

FEW = (1, 2, 4)
MORE = "more"
KEYS = (*map(str, FEW), MORE)
EMPTY = Cell(DASH)


@dataclass(frozen=True)
class Entry:
    """A run with the least distance at each of `KEYS`, and its values by training seed."""

    run: RunReport
    found: dict[str, MetricRecord]
    by_seed: dict[str, Values]
    ranked: bool


def entries(runs: Sequence[RunReport]) -> list[Entry]:
    """The runs that have distances, by the distance at the fewest function evaluations; unranked ones last.

    Where a run has two samplers of one cost, the better one stands for it.
    """
    metric = _metric(runs)
    every = []
    for run in runs:
        found = _best(pooled(run).records, metric)
        by_seed = values(run)
        of_key: dict[str, Values] = {
            key: by_seed[(r.provenance.nfe, r.provenance.sampler), metric] for key, r in found.items()
        }
        if found:
            every.append(Entry(run, found, of_key, is_ranked(run)))

    def place(entry: Entry) -> tuple[bool, int, float]:
        key = next(key for key in KEYS if key in entry.found)
        return not entry.ranked, KEYS.index(key), entry.found[key].value

    return sorted(every, key=place)


def headline(
    runs: Sequence[RunReport], reference: ReferenceFacts | None = None, data: str = "", every: Sequence[Entry] = ()
) -> Table:
    """One row per run that has distances, in the order of `entries`, which may be given.

    Marks as in the whole comparison: the best of a column, and all that are not significantly worse. With several
    training seeds, minor columns hold the ranks that all pairs of a column leave possible.
    """
    every, metric = every or entries(runs), _metric(runs)
    mixed = seeds_differ(runs)
    several = any(run.replicates for run in runs)
    ranks = {key: _ranks(every, key) for key in KEYS} if several else {}
    rows = tuple(
        (
            Cell(entry.run.facts.run),
            Cell(title(entry.run.facts.method)),
            *(of_record(entry.found.get(key)) for key in KEYS[:-1]),
            _with_cost(entry.found.get(MORE)),
            *(shown.get(place, EMPTY) for shown in ranks.values()),
            *([seeds_of(entry.run)] if mixed else []),
            *_trained(entry.run),
        )
        for place, entry in enumerate(every)
    )
    name = next((r.name for run in runs for r in run.records if r.metric == metric), metric_title(metric))
    columns = (
        Column("run", "Run"),
        Column("method", "Method"),
        *(Column(str(nfe), f"{nfe} NFE", "low") for nfe in FEW),
        Column(MORE, "Best of more (NFE)", "low"),
        *(Column(f"rank_{key}", f"Rank, {key} NFE", minor=True) for key in ranks),
        *([SEEDS] if mixed else []),
        Column("init", "Starts from"),
        Column("images", "Images seen"),
        Column("seconds", "Wall time"),
    )
    # Every row is a group of its own: there is one mark, for the best of a column.
    groups = tuple(entry.run.facts.run if entry.ranked else "" for entry in every)
    table = Table("headline", f"{name} by number of function evaluations", columns, rows, "", groups)

    def tied_rows(key: str, inside: Sequence[int], best: int, group: bool) -> set[int]:
        del group
        samples = [every[row].by_seed[key] for row in inside]
        return {inside[at] for at in tied(samples, inside.index(best), every_pair=False)}

    table = marked(table, tied_rows if several else None)
    return replace(table, caption=_caption(runs, reference, name, data, metric))


def best(runs: Sequence[RunReport], every: Sequence[Entry] = ()) -> Table:
    """A row per number of function evaluations: the best run, and how far it stands apart from the others.

    With several training seeds these are the runs that no test tells from the best and the first that is significantly
    worse; with one seed, which decides nothing, the second and the third.
    """
    every = [entry for entry in every or entries(runs) if entry.ranked]
    several = any(run.replicates for run in runs)
    heads = ("Best", "Not told apart from it", "First significantly worse") if several else ("Least", "Second", "Third")
    rows = []
    for key in KEYS:
        held = sorted((entry for entry in every if key in entry.found), key=lambda entry: entry.found[key].value)
        if not held:
            continue
        if several:
            worse = {place for _, place in decided([entry.by_seed[key] for entry in held], 0)}
            near = [_named(entry, key) for place, entry in enumerate(held) if place and place not in worse]
            last = next((_named(entry, key) for place, entry in enumerate(held) if place in worse), DASH)
            texts = (", ".join(near) or ("none" if len(held) > 1 else DASH), last)
        else:
            texts = (*(_named(entry, key) for entry in held[1:3]), DASH, DASH)[:2]
        first = of_record(held[0].found[key])
        name = f"{held[0].run.facts.run} {first.text}" + (f" ({_nfe(held[0], key)})" if key == MORE else "")
        rows.append((Cell(key), Cell(name, best=True, source=first.source), *map(Cell, texts)))
    columns = (Column("nfe", "NFE"), *(Column(head.lower().replace(" ", "_"), head) for head in heads))
    caption = (
        f"Decided by paired t-tests over training seeds, with Holm's correction for their number, at {ALPHA:.0%}."
        if several
        else "One training seed per run: no difference is decided."
    )
    return Table("best", "Best at each number of function evaluations", columns, tuple(rows), caption)


def leaders(runs: Sequence[RunReport], every: Sequence[Entry] = (), most: int = 3) -> set[str]:
    """The best runs at each of `KEYS`, and those that are not ranked: the ones to name where all would be too many."""
    every = every or entries(runs)
    found = {entry.run.facts.run for entry in every if not entry.ranked}
    for key in KEYS:
        held = [entry for entry in every if entry.ranked and key in entry.found]
        found |= {entry.run.facts.run for entry in sorted(held, key=lambda entry: entry.found[key].value)[:most]}
    return found


def _named(entry: Entry, key: str) -> str:
    return f"{entry.run.facts.run} {of_record(entry.found[key]).text}"


def _nfe(entry: Entry, key: str) -> int:
    return entry.found[key].provenance.nfe


def _metric(runs: Sequence[RunReport]) -> str:
    return "fid" if any(r.metric == "fid" for run in runs for r in run.records) else "fd"


def _best(records: Sequence[MetricRecord], metric: str) -> dict[str, MetricRecord]:
    """The least distance at each of the few numbers of function evaluations, and over all larger ones."""
    found: dict[str, MetricRecord] = {}
    for record in records:
        nfe = record.provenance.nfe
        foreign = record.provenance.method == FOREIGN  # whatever its cost, which may not be known, it has one row
        key = str(nfe) if nfe in FEW else MORE if nfe > FEW[-1] or foreign else ""
        if record.key == metric and key and record.value < (found[key].value if key in found else math.inf):
            found[key] = record
    return found


def _ranks(every: Sequence[Entry], key: str) -> dict[int, Cell]:
    """The ranks that each entry may have: behind all that are significantly better, before all that are worse."""
    held = [place for place, entry in enumerate(every) if entry.ranked and key in entry.found]
    pairs = decided([every[place].by_seed[key] for place in held])
    ranks = {}
    for at, place in enumerate(held):
        low = 1 + sum(worse == at for _, worse in pairs)
        high = len(held) - sum(better == at for better, _ in pairs)
        ranks[place] = Cell(str(low) if low == high else f"{low}{DASH}{high}")
    return ranks


def _with_cost(record: MetricRecord | None) -> Cell:
    cell = of_record(record)
    return cell if record is None else replace(cell, text=f"{cell.text} ({record.provenance.nfe or 'not stated'})")


def _trained(run: RunReport) -> tuple[Cell, Cell, Cell]:
    wall = duration(run.time.seconds) if run.time is not None and run.time.device else EMPTY
    return Cell(start(run.facts)), count(run.facts.images), wall


def _caption(runs: Sequence[RunReport], reference: ReferenceFacts | None, name: str, data: str, metric: str) -> str:
    every, runs = runs, [run for run in runs if not is_foreign(run)]
    several, mixed = any(run.replicates for run in runs), seeds_differ(runs)
    per_run = f"training seeds ({1 + len(runs[0].replicates)} per run)"
    scored = [r.provenance for run in runs for r in run.records if r.metric == metric]
    if not scored:
        return ""
    samples = ", ".join(
        map(str, sorted({r.provenance.samples for run in every for r in run.records if r.metric == metric}))
    )
    baselines = [r for r in (reference.baseline if reference else ()) if r.metric == metric]
    parts = [
        f"{name} on {data or scored[0].workload}, {samples} samples per row; lower is better. NFE: network "
        "evaluations per image.",
        f"± is the standard deviation over {'the training seeds of the row' if mixed else per_run}"
        f"{'; with one, the spread of the samples' if mixed else ''}. Bold: the best of its column, and all that "
        f"paired t-tests with Holm's correction cannot tell from it at {ALPHA:.0%}."
        if several
        else "One training seed per run: ± is the spread of the samples alone, so close rows are not ranked by it. "
        "Bold: the best of its column.",
        "Sorted by the distance at the fewest NFE.",
        unranked_text(every),
        *(f"{BASELINES.get(r.provenance.run, r.provenance.run)}: {rounded(r.value)[0]}." for r in baselines),
        f"Two halves of the real images: {rounded(reference.halves)[0]}." if reference and reference.halves else "",
        "Images and wall time are the run's own, without those of the run that it starts from.",
    ]
    return " ".join(part for part in parts if part)
