"""Training seeds in the report: mean and deviation over them, and which differences between runs they decide."""

import math
import statistics
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import combinations

import numpy as np

from cmcore.evaluate.records import MetricRecord
from cmcore.report.captions import MEASURES, is_foreign
from cmcore.report.cells import DASH, Cell, Column, count
from cmcore.report.readers import RunReport

ALPHA = 0.05  # of a family of tests together
SEEDS = Column("seeds", "Training seeds")
Row = tuple[int, str]  # number of function evaluations, sampler
Values = Mapping[int, float]  # of a metric, by training seed


def values(run: RunReport) -> dict[tuple[Row, str], dict[int, float]]:
    """Values by training seed, for each row of the run and each metric."""
    found: dict[tuple[Row, str], dict[int, float]] = {}
    for seed, records in ((run.facts.seed, run.records), *((one.seed, one.records) for one in run.replicates)):
        for record in records:
            row = record.provenance.nfe, record.provenance.sampler
            found.setdefault((row, record.key), {})[seed] = record.value
    return found


def pooled(run: RunReport) -> RunReport:
    """The run with means and standard deviations over training seeds in its records; as it is if it has one seed."""
    if not run.replicates:
        return run
    found = values(run)

    def over_seeds(record: MetricRecord) -> MetricRecord:
        each = found[(record.provenance.nfe, record.provenance.sampler), record.key].values()
        if len(each) < 2:
            return record
        mean, deviation = statistics.fmean(each), statistics.stdev(each)
        return replace(record, value=mean, spread=deviation, spread_of="training seeds", ranges=())

    return replace(run, records=tuple(map(over_seeds, run.records)))


def seeds_differ(runs: Sequence[RunReport]) -> bool:
    """Whether runs were trained from different numbers of seeds, so that each row says its own."""
    return len({len(run.replicates) for run in runs if not is_foreign(run)}) > 1


def seeds_of(run: RunReport) -> Cell:
    """The number of training seeds of a row."""
    return Cell(DASH) if is_foreign(run) else count(1 + len(run.replicates))


def p_value(a: Values, b: Values) -> float:
    """Two-sided p-value of equal means, from Student's t-distribution; nan where neither has a second seed.

    Paired over seeds where both have the same ones (their teachers pair as well), otherwise Welch's test. A single
    value, of public weights, stands for itself in a one-sample test.
    """
    from scipy import stats

    if len(a) < 2 and len(b) < 2:
        return math.nan
    u, v = [a[seed] for seed in sorted(a)], [b[seed] for seed in sorted(b)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of differences that are almost the same for every seed
        if a.keys() == b.keys():
            differences = [x - y for x, y in zip(u, v, strict=True)]
            return _certain(differences, 0.0) or float(np.asarray(stats.ttest_rel(u, v))[1])
        if min(len(u), len(v)) == 1:
            (single,), several = sorted((u, v), key=len)
            return _certain(several, single) or float(np.asarray(stats.ttest_1samp(several, single))[1])
        if len({*u}) == len({*v}) == 1:
            return _certain(u, v[0])
        return float(np.asarray(stats.ttest_ind(u, v, equal_var=False))[1])


def _certain(found: Sequence[float], mean: float) -> float:
    """The p-value of values without any deviation, where the test has none: 1, or the least number; otherwise 0."""
    if len(set(found)) > 1:
        return 0.0
    return 1.0 if found[0] == mean else math.ulp(0.0)


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values adjusted for their number, as Holm (1979) does step by step."""
    adjusted, largest = [0.0] * len(p_values), 0.0
    for rank, place in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[place]))
        adjusted[place] = largest
    return adjusted


def decided(samples: Sequence[Values], best: int | None = None) -> set[tuple[int, int]]:
    """Pairs of places in `samples`, the lower mean first, whose difference is significant.

    Args:
        samples: values by seed, at least one each.
        best: compare the others with this one alone; by default all pairs. Either is one family of tests.
    """
    pairs = [pair for pair in combinations(range(len(samples)), 2) if best is None or best in pair]
    tests = [(pair, p_value(samples[pair[0]], samples[pair[1]])) for pair in pairs]
    tests = [(pair, p) for pair, p in tests if not math.isnan(p)]
    means = [statistics.fmean(one.values()) for one in samples]
    adjusted = holm([p for _, p in tests])
    found = [pair for (pair, _), p in zip(tests, adjusted, strict=True) if p < ALPHA]
    return {(a, b) if means[a] < means[b] else (b, a) for a, b in found}


def tied(samples: Sequence[Values], best: int, *, every_pair: bool) -> set[int]:
    """Places whose difference from that of the best is not significant; those that no test can tell are not tied."""
    unlike = {place for pair in decided(samples, None if every_pair else best) if best in pair for place in pair}
    lone = {place for place, one in enumerate(samples) if len(one) < 2 and len(samples[best]) < 2}
    return set(range(len(samples))) - (unlike | lone) | {best}


def seed_caption(runs: Sequence[RunReport]) -> str:
    """Deviation over seeds, sampling spread, and the significant differences; of one seed, that they are unknown."""
    counts = {1 + len(run.replicates) for run in runs}
    if counts == {1}:
        return "One training seed per run: how large a difference has to be to mean something is not known."
    said = "as many as the row says" if len(counts) > 1 else f"{counts.pop()} per run"
    parts = [f"Values are mean ± standard deviation over training seeds ({said})."]
    spreads: dict[str, list[float]] = {}
    for record in (r for run in runs for r in (*run.records, *(r for one in run.replicates for r in one.records))):
        if record.spread and record.metric not in MEASURES:
            spreads.setdefault(f"{record.key} ({record.spread_of})", []).append(record.spread)
    typical = ", ".join(f"{name} {statistics.median(found):.2g}" for name, found in spreads.items())
    parts.append(f"Typical spread of the samples of one training: {typical}." if typical else "")
    parts.append(
        "Marks are shared by all that are not significantly worse than the best (t-tests, paired over seeds, Welch's "
        f"where seeds differ; Holm's correction over all pairs at the same number of function evaluations, {ALPHA:.0%};"
        " bold: over the pairs with the best)."
    )
    counts_of = [
        (nfe, len(rows_at(runs, nfe)), len(decided([found for _, found in rows_at(runs, nfe)])))
        for nfe in shared_nfes(runs)
    ]
    parts += [
        f"Significant differences of fd at {nfe} NFE: {pairs} of {math.comb(rows, 2)} pairs."
        for nfe, rows, pairs in counts_of
    ]
    return " ".join(part for part in parts if part)


def shared_nfes(runs: Sequence[RunReport]) -> list[int]:
    """Numbers of function evaluations at which there are at least two distances."""
    found = [row[0] for run in runs for row, metric in values(run) if metric == "fd"]
    return sorted({nfe for nfe in found if found.count(nfe) > 1})


def rows_at(runs: Sequence[RunReport], nfe: int) -> list[tuple[str, Values]]:
    """Names and distances by seed of the rows of a number of function evaluations, the least mean first."""
    rows = [
        (f"{run.facts.run} ({row[1]})" if many > 1 else run.facts.run, found)
        for run in runs
        for many in [sum(row[0] == nfe and metric == "fd" for row, metric in values(run))]
        for (row, metric), found in values(run).items()
        if row[0] == nfe and metric == "fd"
    ]
    return sorted(rows, key=lambda row: statistics.fmean(row[1].values()))
