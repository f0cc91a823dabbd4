"""Searches in the report: what was tried, what was found, and what that is worth on other seeds."""

import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from cmcore.report.page import Picture, Section
from cmcore.report.search_tables import confirmed, overview, trials, values
from cmcore.report.searches import ENOUGH, FINISHED, SearchResult, adopted
from cmcore.report.seeds import ALPHA

PICTURES = {
    "parallel": (
        "A line per trial, from the values that it tried to its distance: bold is the best, grey ones were stopped.",
        "Parallel coordinates of all trials.",
    ),
    "importance": (
        "How much of the variance of the logarithm of the distance a parabola in each parameter explains.",
        "Bar chart of the importance of each parameter.",
    ),
}


def sections(searches: Sequence[SearchResult], entries: Mapping[str, Any]) -> tuple[Section, ...]:
    """An overview and a section for every search; nothing where there is none.

    Args:
        searches: what was found.
        entries: `runs` of the parameter file, by which a search is known to be adopted.
    """
    if not searches:
        return ()
    first = Section(title="Searches", tables=(overview(searches, entries),))
    return (first, *(_section(search, entries) for search in searches))


def _section(search: SearchResult, entries: Mapping[str, Any]) -> Section:
    tables = (values(search), *([confirmed(search)] if search.confirmed else []))
    drawn = {name: search.folder / f"{name}.svg" for name in PICTURES}  # thin lines: an eighth of their PNG
    return Section(
        title=f"Search {search.name}",
        text=(_tried(search), verdict(search), _adoption(search, entries)),
        tables=tables,
        folded=(trials(search),),
        figures=tuple(
            Picture(path=path, caption=PICTURES[name][0], alt=PICTURES[name][1])
            for name, path in drawn.items()
            if path.is_file()
        ),
    )


def _tried(search: SearchResult) -> str:
    """The run, the parameters, and the ends of the trials."""
    ends = Counter(trial.outcome.partition(":")[0] for trial in search.trials)
    ended = ", ".join(f"{number} {end}" for end, number in sorted(ends.items(), key=lambda item: item[0] != FINISHED))
    names = ", ".join(path.rpartition(".")[2] for path in search.paths)
    return (
        f"{len(search.trials)} trials of the run {search.base} over {names}, ranked by {search.metric}: {ended}. "
        "The least of many noisy numbers flatters the winner, so it was compared again on other seeds."
    )


def verdict(search: SearchResult) -> str:
    """The result of the comparison on other seeds, with the p-value of a paired t-test and what it decides."""
    differences = search.differences
    if not differences:
        return "It was not compared on other seeds: what the search found may be chance."
    better, seeds = sum(d < 0 for d in differences), len(differences)
    share = statistics.fmean(differences) / statistics.fmean(one["before"] for one in search.confirmed)
    amount = (
        f"fd is {abs(share):.0%} {'lower' if share < 0 else 'higher'} on the mean of {seeds} seed{'s' * (seeds > 1)}"
    )
    found = f"On seeds that the search did not use, {amount}, better on {better}"
    if seeds < ENOUGH:
        return f"{found}: too few to decide, as `confirm` names fewer than {ENOUGH} seeds."
    p = search.p_value
    if p >= ALPHA:
        return f"{found}: no significant difference (paired t-test, p = {p:.2g})."
    return f"{found}: a significant {'gain' if share < 0 else 'loss'} (paired t-test, p = {p:.2g})."


def _adoption(search: SearchResult, entries: Mapping[str, Any]) -> str:
    if adopted(search, entries):
        return f"The parameter file holds these values: the run {search.base} of the tables is trained with them."
    return f"The parameter file does not hold these values: make adopt NAME={search.name} would write them there."
