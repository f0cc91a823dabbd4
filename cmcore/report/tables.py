"""Our runs compared, and beside the published numbers of the same methods. Built from records only."""

import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from cmcore.evaluate.records import NO_EXTRACTOR, MetricRecord, ReferenceFacts
from cmcore.report.captions import (
    BASELINES,
    FOREIGN,
    MEASURES,
    SPACES,
    caption,
    is_foreign,
    is_high,
    is_ranked,
    metric_title,
    start,
    title,
)
from cmcore.report.cells import DASH, Better, Cell, Column, Table, Tied, count, duration, marked, measured, of_record
from cmcore.report.published import DATASETS, Number, counterpart
from cmcore.report.readers import ReportError, RunReport
from cmcore.report.seeds import (
    ALPHA,
    SEEDS,
    Values,
    decided,
    pooled,
    rows_at,
    seed_caption,
    seeds_differ,
    seeds_of,
    shared_nfes,
    tied,
    values,
)
from cmcore.train.timing import TrainingTime

FEATURE_METRICS = ("kid", "precision", "recall", "score")
METRICS = (
    *("fd", *FEATURE_METRICS, "captions", "endpoint_rmse", "fid"),
    *(f"{m}_{space}" for space in SPACES for m in ("fd", *FEATURE_METRICS)),
)
SECOND = (*MEASURES, *(f"{m}_{space}" for space in SPACES for m in MEASURES))
LEAST = "_least"
EMPTY = Cell(DASH)
Key = tuple[int, str]  # number of function evaluations, sampler


def by_sampler(records: Iterable[MetricRecord]) -> dict[Key, dict[str, MetricRecord]]:
    """Records by (NFE, sampler) and metric, in ascending NFE.

    Raises:
        ReportError: the same metric stands twice for one of them.
    """
    table: dict[Key, dict[str, MetricRecord]] = {}
    for record in records:
        row = table.setdefault((record.provenance.nfe, record.provenance.sampler), {})
        if record.key in row:
            p = record.provenance
            where = f"run {p.run!r}: {record.metric} at {p.nfe} NFE with {p.sampler!r}"
            raise ReportError(f"{where} stands twice in its records")
        row[record.key] = record
    return dict(sorted(table.items()))


def comparison(runs: Sequence[RunReport], reference: ReferenceFacts | None = None, data: str = "") -> Table:
    """One row per run and number of function evaluations, then the baselines."""
    baseline = reference.baseline if reference else ()
    check_comparable([record for run in runs for one in run.replicates for record in one.records])
    mixed = seeds_differ(runs)
    originals, runs = runs, [pooled(run) for run in runs]
    everything = [record for run in runs for record in run.records] + list(baseline)
    metrics = [m for m in METRICS if m == "fid" or any(record.key == m for record in everything)]
    # Papers differ in what they quote of several seed ranges: the mean stands under the metric, the least beside it.
    ranges = {m: max((len(r.ranges) for r in everything if r.key == m), default=0) for m in ("fd", "fid")}
    metrics += [f"{m}{LEAST}" for m in ranges if ranges[m]]
    check_comparable(everything)
    fd_name = next((record.name for record in everything if record.key == "fd"), "fd")
    fid_head = "FID" if any(record.metric == "fid" for record in everything) else "FID (no Inception weights)"
    heads = {record.key: record.name for record in everything if record.metric == "fd"}
    heads |= {"fd": fd_name, "fid": fid_head}
    heads |= {f"{m}{LEAST}": f"{heads[m]}, least of {ranges[m]}" for m in ranges}
    columns = (
        Column("run", "Run"),
        Column("method", "Method"),
        Column("nfe", "NFE"),
        *(Column(m, heads.get(m, metric_title(m)), "high" if is_high(m) else "low") for m in metrics),
        Column("two_step_level", "two-step sigma"),
        *([SEEDS] if mixed else []),
        Column("init", "Starts from"),
        Column("images", "Images seen"),
        Column("parameters", "Parameters"),
        Column("seconds", "Wall time"),
        Column("device", "Device"),
    )
    rows, groups, samples = [], [], list[dict[str, Values]]()
    for original, run in zip(originals, runs, strict=True):
        by_seed = values(original)
        keys = by_sampler(run.records)
        shared = Counter(nfe for nfe, _ in keys)
        for (nfe, sampler), found in keys.items():
            facts = run.facts
            trained = (Cell(start(facts)), count(facts.images), count(facts.parameters), *_wall_time(run.time))
            names = (Cell(facts.run), Cell(title(facts.method)))
            # Samplers are named where a run has two of the same cost.
            cost = count(nfe) if shared[nfe] == 1 else Cell(f"{nfe} ({sampler})", float(nfe))
            seeds = (seeds_of(original),) if mixed else ()
            rows.append((*names, cost, *_values(found, metrics), _level(found), *seeds, *trained))
            groups.append(str(nfe) if is_ranked(run) else "")
            samples.append({metric: by_seed[(nfe, sampler), metric] for metric in found})
    for record_set in _by_run(baseline).values():
        source = next(iter(record_set.values())).provenance
        rows.append(
            (
                Cell(BASELINES.get(source.run, source.run)),
                Cell("baseline"),
                EMPTY,
                *_values(record_set, metrics),
                *[EMPTY] * (6 + mixed),
            )
        )
        groups.append("")
    own = [run for run in originals if not is_foreign(run)]
    text = f"{caption(originals, reference, data)} {seed_caption(own)}"
    table = Table("comparison", "Our runs", columns, tuple(rows), text, tuple(groups))
    return marked(table, _tied(samples) if any(run.replicates for run in runs) else None)


def measures(runs: Sequence[RunReport], reference: ReferenceFacts | None = None, seconds: float = 0.0) -> Table | None:
    """A second row for every row of `comparison`: bias, held-out images, diversity, copies and speed; None without any.

    Of images that are sounds of so many seconds the speed has a real-time factor. Real images stand below as anchors: a
    half of the training images measured against the other, and the test images.
    """
    originals, runs = runs, [pooled(run) for run in runs]
    real = [*reference.baseline, *reference.anchors] if reference else []
    ours = [record for run in runs for record in run.records]
    metrics = [m for m in SECOND if any(record.key == m for record in ours)]
    check_comparable(record for run in originals for one in (run, *run.replicates) for record in one.records)
    timed = any(run.sampling for run in runs)
    if not metrics and not timed:
        return None
    # No best is marked: what else ran on the machine decides more than the method.
    speed = (Column("latency", "Latency, ms"), Column("images_per_second", "Images a second"))
    speed += (Column("real_time_factor", "Real-time factor"),) if seconds else ()
    columns = (
        Column("run", "Run"),
        Column("nfe", "NFE"),
        *(Column(m, metric_title(m), _better(m)) for m in metrics),
        *(speed if timed else ()),
    )
    rows, groups, samples = [], [], list[dict[str, Values]]()
    for original, run in zip(originals, runs, strict=True):
        by_seed, keys = values(original), by_sampler(run.records)
        for (nfe, sampler), found in keys.items():
            name = Cell(f"{nfe} ({sampler})", float(nfe)) if sum(n == nfe for n, _ in keys) > 1 else count(nfe)
            who = f"{run.facts.run} ({FOREIGN})" if is_foreign(run) else run.facts.run
            cells = (Cell(who), name, *_values(found, metrics))
            rows.append((*cells, *(_speed(run, nfe, sampler, seconds) if timed else ())))
            groups.append(str(nfe) if is_ranked(run) else "")
            samples.append({metric: by_seed[(nfe, sampler), metric] for metric in found})
    for name, found in _by_run(real).items():
        first = Cell(BASELINES.get(name, name))
        rows.append((first, EMPTY, *_values(found, metrics), *([EMPTY] * len(speed) if timed else ())))
        groups.append("")
    table = Table("measures", "Held-out images, diversity, copies and speed", columns, tuple(rows), "", tuple(groups))
    table = replace(table, caption=_measures_caption(runs, metrics, real, seconds))
    return marked(table, _tied(samples) if any(run.replicates for run in runs) else None)


def _better(key: str) -> Better:
    """The good end of a measure; neither, where real images lie in the middle."""
    if key.split("_")[0] in ("authenticity", "memorised", "nearest", "density"):
        return ""
    return "high" if is_high(key) else "low"


def _speed(run: RunReport, nfe: int, sampler: str, seconds: float) -> tuple[Cell, ...]:
    rows = run.sampling.rows if run.sampling else ()
    row = next((row for row in rows if (row.nfe, row.sampler) == (nfe, sampler)), None)
    if row is None:
        return (EMPTY,) * (3 if seconds else 2)
    numbers = [1000 * row.latency, row.images_per_second, *([row.latency / seconds] if seconds else [])]
    return tuple(Cell(f"{number:.3g}", number) for number in numbers)


def _measures_caption(
    runs: Sequence[RunReport], metrics: Sequence[str], real: Sequence[MetricRecord], seconds: float
) -> str:
    copies = next((r.provenance for run in runs for r in run.records if r.metric == "memorised"), None)
    names = {record.provenance.run for record in real}
    said = {run.sampling.device: max(row.batch for row in run.sampling.rows) for run in runs if run.sampling}
    parts = [
        "Infinitely many samples: the distance as a line in 1/N, extended to 1/N = 0."
        if any(m.endswith("_infinity") for m in metrics)
        else "",
        f"Copies: share of the first {copies.samples} samples that are three times nearer to one training image than "
        "to any other, in pixels; nearest training image: mean root mean square distance, pixels in [-1, 1]."
        if copies
        else "",
        "Authenticity: share of samples farther from their nearest training image than that is from its own nearest."
        if "authenticity" in metrics
        else "",
        "Half of the training images: measured against the other half." if "half" in names else "",
        "Test images: not trained on by any run." if "test" in names else "",
        *(f"Speed: {device}, beside other jobs; latency with one image, the rest in batches of {batch}."
          for device, batch in said.items()),
        f"Real-time factor: latency over the {seconds:.2f} s of a sound, without Griffin-Lim."
        if seconds and said
        else "",
    ]  # fmt: skip
    return " ".join(part for part in parts if part)


def _tied(samples: Sequence[Mapping[str, Values]]) -> Tied:
    """The rows that no test over training seeds tells from the best."""

    def tied_rows(key: str, inside: Sequence[int], best: int, group: bool) -> set[int]:
        if key not in samples[best] or key.endswith(LEAST):
            return {best}
        found = tied([samples[row][key] for row in inside], inside.index(best), every_pair=group)
        return {inside[place] for place in found}

    return tied_rows


def by_training_seed(runs: Sequence[RunReport]) -> Table:
    """The values of every training seed: a row per run, number of function evaluations and seed."""
    recorded = {record.key for run in runs for record in run.records}
    metrics = [m for m in (*METRICS, *SECOND) if m in recorded]
    columns = (
        *(
            Column(key, head)
            for key, head in (("run", "Run"), ("nfe", "NFE"), ("sampler", "Sampler"), ("seed", "Seed"))
        ),
        *(Column(m, metric_title(m), "high" if is_high(m) else "low") for m in metrics),
        Column("fingerprint", "Fingerprint of the run", minor=True),
    )
    rows = []
    for run in runs:
        for seed, records in ((run.facts.seed, run.records), *((one.seed, one.records) for one in run.replicates)):
            for (nfe, sampler), found in by_sampler(records).items():
                names = (Cell(run.facts.run), count(nfe), Cell(sampler), Cell(str(seed), float(seed)))
                mark = Cell(next(iter(found.values())).provenance.fingerprint)
                rows.append((*names, *_values(found, metrics), mark))
    return Table("seeds", "Every training seed", columns, tuple(rows), "± is the spread of the samples.")


def differences(runs: Sequence[RunReport]) -> Table:
    """Which distances are significantly below which others at the same number of function evaluations."""
    rows = []
    for nfe in shared_nfes(runs):
        named = rows_at(runs, nfe)
        pairs = decided([found for _, found in named])
        for place, (name, found) in enumerate(named):
            lower = [named[b][0] for a, b in sorted(pairs) if a == place]
            shown = _over_seeds(found)
            rows.append((count(nfe), Cell(name), shown, Cell(", ".join(lower) or "none")))
    columns = (
        Column("nfe", "NFE"),
        Column("run", "Run"),
        Column("fd", "fd", "low"),
        Column("below", "Significantly below"),
    )
    text = (
        f"t-tests over training seeds, with Holm's correction over all pairs at the same NFE, at {ALPHA:.0%}. Two runs "
        "of which neither names the other are tied."
    )
    return Table("differences", "Significant differences", columns, tuple(rows), text)


def _over_seeds(found: Values) -> Cell:
    values_of = list(found.values())
    return measured(statistics.fmean(values_of), statistics.stdev(values_of) if len(values_of) > 1 else 0.0)


def check_comparable(records: Iterable[MetricRecord]) -> None:
    """Refuse to put values side by side that were measured in different features or against different images.

    Raises:
        ReportError: naming the metric and two runs that differ.
    """
    first: dict[str, MetricRecord] = {}
    for record in records:
        if record.provenance.extractor == NO_EXTRACTOR:
            continue  # end points belong to a run's own teacher
        p, q = record.provenance, first.setdefault(record.key, record).provenance
        if (p.extractor_digest, p.reference_digest) != (q.extractor_digest, q.reference_digest):
            raise ReportError(
                f"{record.metric}: expected one extractor and one reference for all runs, got {q.extractor} against "
                f"{q.reference_digest[:8]} for run {q.run!r} and {p.extractor} against {p.reference_digest[:8]} for "
                f"run {p.run!r}; evaluate them again"
            )


def _values(found: dict[str, MetricRecord], metrics: Sequence[str]) -> list[Cell]:
    return [_least(found.get(m.removesuffix(LEAST))) if m.endswith(LEAST) else of_record(found.get(m)) for m in metrics]


def _least(record: MetricRecord | None) -> Cell:
    return measured(record.minimum, 0.0) if record is not None and record.ranges else EMPTY


def _level(found: dict[str, MetricRecord]) -> Cell:
    levels = next(iter(found.values())).provenance.levels
    return Cell(f"{levels[1]:.4g}", levels[1]) if len(levels) == 2 else EMPTY


def _wall_time(time: TrainingTime | None) -> tuple[Cell, Cell]:
    """Wall time and device of the training."""
    if time is None or not time.device:
        return EMPTY, EMPTY
    return duration(time.seconds), Cell(time.device if time.workers == 1 else f"{time.workers} x {time.device}")


def _by_run(records: Iterable[MetricRecord]) -> dict[str, dict[str, MetricRecord]]:
    table: dict[str, dict[str, MetricRecord]] = {}
    for record in records:
        table.setdefault(record.provenance.run, {})[record.key] = record
    return table


def beside(runs: Sequence[RunReport], numbers: Sequence[Number], dataset: str = "cifar10") -> Table:
    """Our distances beside the published FID of the same method at the same number of function evaluations."""
    metric = "fid" if any(r.metric == "fid" for run in runs for r in run.records) else "fd"
    ours = next((r.name for run in runs for r in run.records if r.metric == metric), metric)
    columns = (
        Column("method", "Method"),
        Column("nfe", "NFE"),
        Column("ours", f"Ours: {ours}", "low"),
        Column("published", f"Published: FID, {DATASETS[dataset]}", "low"),
        Column("published_init", "Published run starts from"),
        Column("published_images", "Published images seen"),
        Column("source", "Source"),
        Column("known", "How we know it"),
    )
    rows = []
    for run in runs:
        for (nfe, _), found in by_sampler(pooled(run).records).items():
            name = title(run.facts.method)
            first = Cell(name if run.facts.run == run.facts.method else f"{name} ({run.facts.run})")
            facts = {"workload": run.facts.workload, "run": run.facts.run, "method": run.facts.method}
            theirs = counterpart(numbers, dataset, **facts, nfe=nfe)
            rows.append((first, count(nfe), *_values(found, [metric]), *_published(theirs)))
    workload = runs[0].facts.workload
    differ = "" if workload == dataset else "other data, networks and budgets"
    differ += "" if metric == "fid" else f"{', and ' if differ else ''}another feature space"
    text = (
        f"The left number is ours, on {workload}; the right one is published, for {DATASETS[dataset]}"
        f"{f': {differ}' if differ else ''}. "
        + ("Compare the order of the methods and the gain of the second step, not the values." if differ else "")
    )
    return Table("beside", "Our runs beside the published numbers", columns, tuple(rows), text)


def _published(number: Number | None) -> list[Cell]:
    if number is None:
        return [EMPTY] * 5
    row = number.row
    return [Cell(number.text, number.value), Cell(row.init), count(row.images), Cell(number.cite), Cell(row.known)]
