"""The tables of searches."""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from cmcore.numbers import grouped, short
from cmcore.report.cells import DASH, Cell, Column, Table, count, marked, measured
from cmcore.report.searches import ENOUGH, FINISHED, SearchResult, adopted

EMPTY = Cell(DASH)
DIGITS = 4  # of a value that was tried


def overview(searches: Sequence[SearchResult], entries: Mapping[str, Any]) -> Table:
    """One row per search."""
    heads = (
        "Search",
        "Run",
        "Trials",
        "Finished",
        "Other seeds",
        "fd before",
        "fd after",
        "Difference",
        "Better on",
        "p",
    )
    columns = tuple(Column(head.lower().replace(" ", "_"), head) for head in (*heads, "In the parameter file"))
    rows = []
    for search in searches:
        finished = sum(trial.outcome == FINISHED for trial in search.trials)
        better = f"{sum(d < 0 for d in search.differences)} of {len(search.differences)} seeds"
        compared = search.confirmed and [
            _mean([one["before"] for one in search.confirmed]),
            _mean([one["after"] for one in search.confirmed]),
            _signed(_mean(search.differences)),
            Cell(better),
            measured(search.p_value) if len(search.confirmed) >= ENOUGH else EMPTY,
        ]
        numbers = (_whole(len(search.trials)), _whole(finished), _whole(len(search.confirmed)))
        state = Cell("yes" if adopted(search, entries) else "no")
        rows.append((Cell(search.name), Cell(search.base), *numbers, *(compared or [EMPTY] * 5), state))
    text = (
        "Before: the run as it was declared when the search ran; after: with the best values of the search; both "
        "trained in full, on seeds that the search did not use. Means ± standard deviations over these seeds; the "
        f"difference is taken seed by seed, and below 0 is better. p: paired t-test, of at least {ENOUGH} seeds."
    )
    return Table("searches", "Searches", columns, tuple(rows), text)


def values(search: SearchResult) -> Table:
    """The values tried of every parameter, the best one, and the importance of the parameter."""
    last = max(search.importance, default=0)
    shares = search.importance.get(last, {})
    best = search.trials[0].values if search.trials else {}
    rows = []
    for path in search.paths:
        tried = [trial.values[path] for trial in search.trials if path in trial.values]
        words = any(isinstance(value, str) for value in tried)
        span = (
            ", ".join(sorted({str(v) for v in tried}))
            if words
            else f"{short(min(tried), DIGITS)} to {short(max(tried), DIGITS)}"
        )
        found = Cell(short(best.get(path, DASH), DIGITS))
        share = Cell(f"{shares[path]:.0%}", shares[path]) if path in shares else EMPTY
        rows.append((Cell(path), Cell(span), found, share))
    columns = (
        Column("parameter", "Parameter"),
        Column("tried", "Tried"),
        Column("best", "Best"),
        Column("importance", "Importance"),
    )
    text = f"Importance: share of the variance of ln fd after {grouped(last)} images that the parameter explains."
    title = f"Search {search.name}: values of runs.{search.base}"
    return Table(f"search_{search.name}_values", title, columns, tuple(rows), text if shares else "")


def confirmed(search: SearchResult) -> Table:
    """Before and after on every seed, and their means."""
    names = [name for name in search.confirmed[0] if name != "seed"]
    columns = (
        Column("seed", "Seed"),
        *(Column(name, f"fd {name}", "low") for name in names),
        Column("difference", "After minus before"),
    )
    rows = [
        (Cell(f"{one['seed']:g}"), *(measured(one[name]) for name in names), _signed(measured(difference)))
        for one, difference in zip(search.confirmed, search.differences, strict=True)
    ]
    means = [_mean([one[name] for one in search.confirmed]) for name in names]
    rows.append((Cell("mean"), *means, _signed(_mean(search.differences))))
    how = search.metric.partition(" after ")[0]  # a trial's budget, which these runs do not have
    text = [f"Full runs, seed by seed in training and samples; {how}. Means ± standard deviations over the seeds."]
    if "reconstructed" in names:
        text.append(
            "Before and after are two averages of the weights of one training, the second tracked with the width that "
            "was found; reconstructed: the same average, made afterwards from stored snapshots."
        )
    return Table(
        f"search_{search.name}", f"Search {search.name}: before and after", columns, tuple(rows), " ".join(text)
    )


def trials(search: SearchResult) -> Table:
    """All trials, the best first."""
    rungs = search.rungs
    columns = (
        Column("rank", "Rank"),
        *(Column(path, path) for path in search.paths),
        *(Column(f"fd_{images}", f"fd at {grouped(images)} images", "low") for images in rungs),
        Column("end", "End"),
    )
    rows = tuple(
        (
            _whole(rank),
            *(_value(trial.values.get(path)) for path in search.paths),
            *(measured(trial.scores[images]) if images in trial.scores else EMPTY for images in rungs),
            Cell(trial.outcome),
        )
        for rank, trial in enumerate(search.trials, start=1)
    )
    text = "The best first; whoever came further stands before those that were stopped earlier."
    table = Table(
        f"search_{search.name}_trials", f"Search {search.name}: all trials", columns, rows, text, ("all",) * len(rows)
    )
    return marked(table)


def _mean(values: Sequence[float]) -> Cell:
    return measured(statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else 0.0)


def _signed(cell: Cell) -> Cell:
    """The cell of a difference, whose sign says which way it goes."""
    return replace(cell, text=f"+{cell.text}") if (cell.value or 0.0) > 0 else cell


def _whole(number: int) -> Cell:
    return count(number) if number else Cell("0", 0.0)


def _value(value: Any) -> Cell:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        return Cell(DASH if value is None else str(value))
    return Cell(short(value, DIGITS), float(value))
