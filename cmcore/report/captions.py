"""Words around the numbers: what a metric is called, and a caption that states how a table was measured."""

import re
from collections.abc import Iterable, Mapping, Sequence
from textwrap import shorten

from cmcore.evaluate.records import MetricRecord, ReferenceFacts, RunFacts
from cmcore.numbers import rounded
from cmcore.report.published import titles, unranked
from cmcore.report.readers import RunReport

NAMES = {
    "kid": "KID",
    "fid": "FID",
    "score": "classifier score",
    "captions": "captions read",
    "endpoint_rmse": "end-point error",
    "fd_infinity": "fd, infinitely many samples",
    "fid_infinity": "FID, infinitely many samples",
    "fd_test": "fd to test images",
    "fid_test": "FID to test images",
    "memorised": "copies",
    "nearest": "nearest training image",
}
BASELINES = {
    "gaussian_pixels": "Gaussian fit",
    "half": "half of the training images",
    "test": "test images",
    "reconstruction": "images that the codec decodes",
    "resynthesis": "images of the sounds of images",
}
SPACES = {"inception": "Inception", "dinov2": "DINOv2"}  # features of public networks
MEASURES = (  # of the second table
    "fd_infinity",
    "fid_infinity",
    "fd_test",
    "fid_test",
    "density",
    "coverage",
    "authenticity",
    "memorised",
    "nearest",
)


LINE = 90  # characters of a caption
FOREIGN = "foreign samples"  # the method of what no run here has drawn


def title(method: str) -> str:
    """A method's name as its authors write it."""
    return titles().get(method, method.upper() if len(method) <= 4 else method)


def commit(code: str) -> str:
    """A git commit, or several, shortened to 12 digits."""
    return re.sub(r"[0-9a-f]{40,}", lambda found: found[0][:12], code)


def start(facts: RunFacts) -> str:
    """The run that a run starts from, or "random"; of weights that saw no image here, what they come from instead."""
    if facts.images or facts.method == FOREIGN:
        return facts.init
    return "a weight file" if facts.init == "random" else f"{facts.init}, with an adapter"


def is_ranked(run: RunReport) -> bool:
    """Whether its rows may carry the mark of the best."""
    return run.facts.method not in unranked() and not is_foreign(run)


def is_foreign(run: RunReport) -> bool:
    """Whether it is a sample set of another generator."""
    return run.facts.method == FOREIGN


def unranked_text(runs: Sequence[RunReport]) -> str:
    """Names the runs without marks, and the reason; "" where there is none."""
    names = ", ".join(run.facts.run for run in runs if run.facts.method in unranked())
    foreign = ", ".join(run.facts.run for run in runs if is_foreign(run))
    own = f"Not ranked, as its loss is this distance itself: {names}." if names else ""
    others = f"Not ranked, as these samples were not drawn here: {foreign}." if foreign else ""
    return " ".join(text for text in (own, others) if text)


def run_title(run: RunReport) -> str:
    """A run's name for figures: the method's name where the run is called after it."""
    name = run.facts.run
    return title(run.facts.method) if name == run.facts.method else titles(of="run_titles").get(name, name)


def prompts(runs: Sequence[RunReport], most: int) -> tuple[str, ...]:
    """The captions of the first samples, shortened to a line, where all runs were told the same; () otherwise."""
    told = {run.told[:most] for run in runs if run.samples}
    return tuple(shorten(text, LINE, placeholder=" ...") for text in told.pop()) if len(told) == 1 else ()


def metric_title(key: str) -> str:
    """A column's name for readers."""
    space = next((space for space in SPACES if key.endswith(f"_{space}")), "")
    name = key.removesuffix(f"_{space}") if space else key
    return NAMES.get(name, name) + (f" ({SPACES[space]})" if space else "")


def is_high(key: str) -> bool:
    """Whether more is better."""
    return key.split("_")[0] in ("precision", "recall", "score", "captions", "density", "coverage", "authenticity")


def caption(runs: Sequence[RunReport], reference: ReferenceFacts | None, data: str) -> str:
    """The circumstances of the comparison: data, samples, features, seeds, weights, spreads, bold and italic, gaps."""
    every, runs = runs, [run for run in runs if not is_foreign(run)]
    ours = [record for run in runs for record in run.records]
    scored = [record.provenance for record in ours if record.key == "fd"] or [ours[0].provenance]
    samples = {p.samples for p in scored} | {
        r.provenance.samples for run in every for r in run.records if r.key == "fd"
    }
    several = any(run.replicates for run in runs)
    features = dict.fromkeys(f"{p.extractor} (digest {p.extractor_digest[:8]})" for p in scored)
    parts = [
        f"{data or scored[0].workload}: {_listed(p.reference_count for p in scored)} reference images, "
        f"{_listed(samples)} samples per row.",
        "The numbers of samples differ, so the distances do not compare exactly." if len(samples) > 1 else "",
        f"Features: {', '.join(features)}{_extractor(reference)}.",
        f"Seeds: {_listed(p.seed for p in scored)} for the noise of the samples, "
        f"{_listed(seed for r in runs for seed in (r.facts.seed, *(one.seed for one in r.replicates)))} for training.",
        f"Weights: EMA {_listed(p.ema for p in scored)}.",
        *([] if several else [f"± is a spread ({_spreads(ours)}).", _ranges(ours)]),
        "Images seen and wall time are the run's own, without those of the run that it starts from.",
        "Bold: best of its column; italic: best at its number of function evaluations.",
        "Gaussian fit: samples from a Gaussian fitted to the pixels." if reference and reference.baseline else "",
        unranked_text(every),
        _endpoint(ours),
        *(f"Latents are decoded (decoder {digest[:8]})." for digest in sorted({r.facts.decoder for r in runs} - {""})),
        _reconstruction(reference),
        *(f"No FID: {why}." for why in sorted({r.facts.fid_absent for r in runs} - {""})),
        *(f"{why}." for why in sorted({r.facts.left_out for r in runs} - {""})),
    ]
    return " ".join(part for part in parts if part)


def _listed(values: Iterable[int | str]) -> str:
    return ", ".join(map(str, sorted(set(values))))  # type: ignore[type-var]


def _spreads(records: Sequence[MetricRecord]) -> str:
    shown = [record for record in records if record.metric not in MEASURES]
    spreads = dict.fromkeys(f"{metric_title(r.metric)}: {r.spread_of}" for r in shown if r.spread)
    return ", ".join(spreads) or "none measured"


def _ranges(records: Sequence[MetricRecord]) -> str:
    counts = {len(record.ranges) for record in records if record.ranges}
    return f"Values are means over {_listed(counts)} ranges of samples under one seed." if counts else ""


def _extractor(reference: ReferenceFacts | None) -> str:
    if reference is None:
        return ""
    held = (reference.extractor.accuracy or {}).get("held_out")
    reads = reference.extractor.kind == "reader"
    what = "share of held-out images whose whole caption it reads" if reads else "held-out accuracy"
    facts = [f"{what} {held:.1%}"] if held is not None else []
    test = next((r for r in reference.anchors if (r.key, r.provenance.run) == ("captions", "test")), None)
    facts += [f"of test images {test.value:.1%}"] if test else []
    facts += ["a network that was not trained"] if reference.extractor.kind == "random" else []
    if reference.halves:
        facts.append(f"two halves of the reference are {rounded(reference.halves)[0]} apart")
    return f"; {', '.join(facts)}" if facts else ""


def _reconstruction(reference: ReferenceFacts | None) -> str:
    """What is lost between images and latents, and between images and sounds."""
    texts = {"reconstruction": "encoded and decoded", "resynthesis": "made sounds (Griffin-Lim) and images again"}
    anchors = reference.anchors if reference else ()
    found = {run: {r.key: r for r in anchors if r.provenance.run == run} for run in texts}
    return " ".join(_lost(texts[run], records) for run, records in found.items() if records)


def _lost(what: str, found: Mapping[str, MetricRecord]) -> str:
    count, error = found["reconstruction"].provenance.samples, _value(found["reconstruction"])
    parts = [f"root mean square error {error}"]
    parts += [f"{found[key].name} {_value(found[key])}" for key in ("fd", "fd_test") if key in found]
    parts += [f"captions read {found[key].value:.1%}" for key in ("captions",) if key in found]
    return f"{count} images, {what}: {', '.join(parts)}."


def _value(record: MetricRecord) -> str:
    return rounded(record.value, record.spread)[0]


def _endpoint(records: Sequence[MetricRecord]) -> str:
    if not any(record.metric == "endpoint_rmse" for record in records):
        return ""
    return (
        "End-point error: root mean square distance between samples and the teacher's probability-flow end points "
        "from the same noise."
    )
