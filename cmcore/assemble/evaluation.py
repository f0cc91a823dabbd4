"""Evaluation of one run: samples at every number of function evaluations, measured against the references."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cmcore.assemble.passes import Pass, Shards, passes
from cmcore.assemble.run import Run
from cmcore.assemble.summary import file_digest, read_summary
from cmcore.assemble.training import WEIGHTS
from cmcore.closure import revision, source_digest
from cmcore.config import digest
from cmcore.data.decoded import Decoding
from cmcore.evaluate.endpoints import endpoint_rmse
from cmcore.evaluate.nearest import Training
from cmcore.evaluate.records import NO_EXTRACTOR, MetricRecord, Provenance, RunFacts, RunMetrics, Source
from cmcore.evaluate.settings import EvalConfig
from cmcore.evaluate.suite import Reference, copies, measure, record
from cmcore.evaluate.timing import SamplingTimes
from cmcore.sample.base import Sampler
from cmcore.sample.guided import GuidedSampler
from cmcore.tensors import to_uint8
from cmcore.train import checkpoint
from cmcore.train.timing import device_name

NEAREST = "nearest_"  # begins the name of images that are the nearest training images of others
TOLD = "told"  # the name of the captions of samples


@dataclass(frozen=True)
class Outcome:
    """The content of metrics/<run>.json, and uint8 images by name for the figures."""

    metrics: RunMetrics
    samples: dict[str, np.ndarray]  # of every row, and of its nearest training images; and their captions as text
    store: Path  # the shards
    times: SamplingTimes | None = None  # of this machine; None where no images are kept

    @property
    def superfluous(self) -> list[Path]:
        """The shards, of no use once the outcome is stored; records beside them stay."""
        kept = any(path.is_file() for path in self.store.glob("*"))
        return [path for path in self.store.glob("*") if path.is_dir()] if kept else [self.store]


@dataclass(frozen=True)
class Share:
    """Which shards one of several workers does: every `of`-th, from the one with its own number on."""

    worker: int = 0
    of: int = 1


@dataclass(frozen=True)
class Evaluation:
    """A run to evaluate, with the references it is measured against."""

    run: Run
    workload: str
    config: EvalConfig
    references: Sequence[Reference]  # real images under one or more extractors; the first judges scans and snapshots
    folder: Path  # the run's results (of `train_run`)
    teacher: Path | None  # weight file of the diffusion model for the end-point error; None: there is none
    work: Path  # where finished shards lie, in folders named by their fingerprint
    device: str = "cpu"
    decoding: Decoding | None = None  # what makes images of samples that are latents
    final_only: bool = False  # without scans, other scales, snapshots, images and times
    training: Training | None = None  # images that samples are compared with in pixels
    class_counts: tuple[int, ...] = ()  # of `classes_drawn`
    captions: Tensor | None = None  # of `captions_drawn`
    spelled: np.ndarray | None = None  # the words of encoded captions by their numbers

    @cached_property
    def passes(self) -> list[Pass]:
        """All that is sampled."""
        found = passes(self.run, self.config, self.folder, self.teacher, len(self.references))
        return [replace(one, shown=0) for one in found if one.place == "records"] if self.final_only else found

    @cached_property
    def store(self) -> Path:
        """The folder of this evaluation's shards: another one for other weights, settings, extractors or code."""
        files = dict.fromkeys(path for one in self.passes for path in (one.weights, one.teacher) if path)
        found = [file_digest(path) for path in files]
        seen_by = [reference.extractor.digest for reference in self.references]
        seen_by += [self.decoding.digest] if self.decoding else []
        seen_by += [self.training.digest] if self.training else []
        code = source_digest(["cmcore.assemble.evaluation", f"cmcore.nets.{self.run.net.kind}"])
        samplers = [f"{one.name} {_described_sampler(one.sampler)}" for one in self.passes]
        described: list[Any] = [self.config, found, seen_by, code, samplers]
        if self.device != "cpu":  # where the run's precision is that of its samples
            described += [self.device, self.run.train.precision]
        if self.class_counts:
            described.append(self.class_counts)
        if self.captions is not None:
            described.append(self.captions.tolist())
        return self.work / f"{self.run.name}-{digest(described)}"

    @cached_property
    def shards(self) -> Shards:
        """Its shards, finished or not."""
        extractors = [reference.extractor for reference in self.references]
        to_images = self.decoding or to_uint8
        return Shards(
            self.store, self.config, self.run, extractors, self.device, to_images, self.training, self.class_counts,
            self.captions,
        )  # fmt: skip


def draw(evaluation: Evaluation, share: Share, on_progress: Callable[[int, int], None]) -> None:
    """Sample and measure a share of the unfinished shards; `on_progress` gets (images done, images in the share)."""
    shards = evaluation.shards
    units = shards.units(evaluation.passes)[share.worker :: share.of]
    done, total = 0, sum(unit.span.stop - unit.span.start for unit in units)

    def on_images(count: int) -> None:
        nonlocal done
        done += count
        on_progress(done, total)

    for unit in units:
        shards.do(unit, on_images)


def evaluate_run(evaluation: Evaluation, *, fid_absent: str, on_progress: Callable[[int, int], None]) -> Outcome:
    """Do what is left of the shards, and measure.

    Args:
        evaluation: of what, against what.
        fid_absent: why there is no Inception reference, empty if there is one.
        on_progress: called with (images generated, total).

    Returns:
        The records and a few images of every sampler. They are the same, bit for bit, whoever did the shards.
    """
    draw(evaluation, Share(), on_progress)
    run = evaluation.run
    summary = read_summary(evaluation.folder)
    lists: dict[str, list[MetricRecord]] = {"records": [], "scan": [], "snapshots": [], "guidance": []}
    for one in evaluation.passes:
        lists[one.place] += _records(evaluation, one)
    absent = sorted({reference.absent for reference in evaluation.references} - {""})
    facts = RunFacts(
        workload=evaluation.workload,
        run=run.name,
        method=run.method,
        init=run.init,
        parameters=summary["parameters"],
        images=summary["images"],
        ema=checkpoint.header(evaluation.folder / WEIGHTS)["eval_ema"],
        seed=summary["seed"],
        conditional=run.conditional,
        fid_absent=fid_absent,
        left_out="; ".join(absent),
        decoder=evaluation.decoding.digest if evaluation.decoding else "",
        labels=evaluation.config.labels if run.conditional else "",
    )
    records, scan, snapshots, guidance = map(tuple, lists.values())
    metrics = RunMetrics(facts=facts, records=records, scan=scan, snapshots=snapshots, guidance=guidance)
    shown = {one.name: evaluation.shards.shown(one) for one in evaluation.passes if one.shown}
    for one in (one for one in evaluation.passes if one.shown):
        found = evaluation.shards.nearest(one)
        if found is not None and evaluation.training is not None:
            shown[f"{NEAREST}{one.name}"] = np.array(
                evaluation.training.images[found.row[: len(shown[one.name])].numpy()]
            )
    if shown and evaluation.captions is not None:
        shown[TOLD] = evaluation.shards.told(evaluation.passes[0], len(next(iter(shown.values()))))
    return Outcome(metrics, shown, evaluation.store, None if evaluation.final_only else _times(evaluation))


def _times(evaluation: Evaluation) -> SamplingTimes:
    rows = tuple(
        evaluation.shards.time(one) for one in evaluation.passes if one.place == "records" and one.teacher is None
    )
    return SamplingTimes(device=device_name(torch.device(evaluation.device)), rows=rows, code=revision())


def _records(evaluation: Evaluation, one: Pass) -> list[MetricRecord]:
    config, shards, source = evaluation.config, evaluation.shards, _source(evaluation, one)
    if one.teacher is None:
        firsts = [index * one.samples for index in range(one.ranges)]
        judges = evaluation.references[: one.judges]
        final = one.place == "records"
        made = measure(
            shards.parts(one), judges, source, config, firsts, evaluation.device, every=final,
            told=_told(evaluation, one),
        )  # fmt: skip
        found, training = shards.nearest(one), evaluation.training
        if found is not None and training is not None:
            pixels = math.prod(training.images.shape[1:])
            made += copies(found.squared, pixels, evaluation.references[0].digest, len(training.images), source)
        return made
    provenance = Provenance(
        **vars(source),
        extractor=NO_EXTRACTOR,
        extractor_digest=NO_EXTRACTOR,
        reference_digest=checkpoint.header(one.teacher)["fingerprint"],
        reference_count=one.samples,
        samples=one.samples,
    )
    return [record("endpoint_rmse", endpoint_rmse(shards.errors(one)), provenance)]


def _source(evaluation: Evaluation, one: Pass) -> Source:
    meta = checkpoint.header(one.weights)
    return Source(
        workload=evaluation.workload,
        run=evaluation.run.name,
        method=evaluation.run.method,
        fingerprint=meta["fingerprint"],
        sampler=one.sampler.name,
        nfe=one.sampler.nfe,
        ema=meta["eval_ema"],
        images=meta["images"],
        seed=evaluation.config.seed,
        levels=one.sampler.noise_levels,
    )


def _described_sampler(sampler: Sampler) -> str:
    return f"{sampler.name} {sampler.nfe} {sampler.noise_levels}"


def _told(evaluation: Evaluation, one: Pass) -> Callable[[Sequence[int]], Tensor] | None:
    """The captions of samples by their numbers, as words (B, L); None where they have none."""
    if evaluation.captions is None:
        return None
    labels = evaluation.shards.captions_of(one)
    if evaluation.spelled is None:
        return labels
    words = torch.from_numpy(evaluation.spelled)
    return lambda rows: words[labels(rows)[:, 0]]


def classes_drawn(run: Run, config: EvalConfig, manifest: Mapping[str, Any]) -> tuple[int, ...]:
    """The counts in proportion to which the classes of samples are drawn, from the manifest of the real images.

    None where all classes are drawn alike, or the run is unconditional.
    """
    classes = run.conditional is True and config.labels == "reference"
    return tuple(manifest["class_counts"]) if classes else ()


def captions_drawn(run: Run, captions: np.ndarray | None, *, alike: bool = False) -> Tensor | None:
    """The captions that those of samples are drawn from, int64 (N, L), or None where the run reads none.

    Those of all images, or with `alike` each different one once.
    """
    if run.conditional != "words" or captions is None:
        return None
    return torch.from_numpy(np.unique(captions, axis=0) if alike else captions)


def endpoint_run(runs: Mapping[str, Run], run: Run) -> str:
    """The diffusion run for the end-point error: the teacher, else the run it starts from; "" where neither is one.

    The end points of a guided run ask for a diffusion model that can be guided.
    """
    guided = isinstance(run.objective.samplers(run.sampling(steps=2))[0], GuidedSampler)

    def suits(source: Run) -> bool:
        traits = source.objective.traits
        return not traits.few_step and (not guided or traits.unlabelled or source.weights is not None)

    return next((name for name in (run.teacher, run.init) if name in runs and suits(runs[name])), "")
