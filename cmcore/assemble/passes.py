"""The passes of an evaluation, cut into shards: any worker does any shard, and a finished shard is a file."""

import math
import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from cmcore.assemble.inference import for_samples
from cmcore.assemble.models import LoadedModel, drawn, load_model
from cmcore.assemble.run import Run
from cmcore.assemble.training import SNAPSHOTS, WEIGHTS
from cmcore.diffusion.words import Text
from cmcore.evaluate.collect import Part, Span, collect, joined, spans
from cmcore.evaluate.endpoints import squared_errors
from cmcore.evaluate.features import FeatureExtractor
from cmcore.evaluate.moments import Moments
from cmcore.evaluate.nearest import Nearest, Training
from cmcore.evaluate.settings import EvalConfig
from cmcore.evaluate.timing import RowTime
from cmcore.layers.text import captions_of
from cmcore.rng import NoiseSource
from cmcore.sample.base import Sampler
from cmcore.sample.guided import GuidedSampler
from cmcore.sample.presets import ode_sampler
from cmcore.sample.stream import generate
from cmcore.tensors import to_uint8
from cmcore.train import checkpoint
from cmcore.train.session import snapshot_images

SHOWN = 64  # images of every sampler that are kept for the figures
ENDPOINTS = "endpoints"
_CALLS, _SECONDS = 20, 0.05  # of a measurement of latency, whichever comes first


@dataclass(frozen=True)
class Pass:
    """Samples of one model from one sampler."""

    name: str  # of the folder of its shards
    weights: Path
    sampler: Sampler
    samples: int  # in every range
    place: Literal["records", "scan", "snapshots", "guidance"] = "records"  # where its records stand
    ranges: int = 1
    judges: int = 1  # how many of the extractors see them, from the first on
    shown: int = 0  # images that are kept
    teacher: Path | None = None  # its end points are what the samples are compared with, instead of features


class Unit(NamedTuple):
    """A shard of a pass."""

    of: Pass
    span: Span


def passes(run: Run, config: EvalConfig, folder: Path, teacher: Path | None, judges: int) -> list[Pass]:
    """All that is sampled of the results in `folder`: the final weights, scans, other scales, then snapshots."""
    final, method, sampling = folder / WEIGHTS, run.objective, run.sampling(config.teacher_steps)
    rows = method.samplers(sampling)
    # The solvers of one diffusion model differ in numbers; to the eye the first is enough.
    shown = [SHOWN if method.traits.few_step or index == 0 else 0 for index in range(len(rows))]
    found = [
        Pass(name, weights_at(run, folder, s), s, config.samples, ranges=config.seed_ranges, judges=judges, shown=kept)
        for name, s, kept in zip(row_names(rows), rows, shown, strict=True)
    ]
    if teacher is not None and method.traits.few_step:
        found.append(Pass(ENDPOINTS, final, rows[0], config.endpoints, shown=SHOWN, teacher=teacher))
    found += [
        Pass(f"scan_{sampler.noise_levels[1]:g}", final, sampler, config.scan_samples, "scan")
        for sampler in method.scan(sampling, config.scan)
    ]
    known = {(row.nfe, row.name) for row in rows}
    guided = [
        row
        for s in scales(run, config)
        for row in method.samplers(replace(sampling, guidance=s))
        if (row.nfe, row.name) not in known
    ]
    found += [
        Pass(f"guidance_{row.nfe}_{row.name}", weights_at(run, folder, row), row, config.samples, "guidance")
        for row in guided
    ]
    quickest = rows[0]
    snapshots = sorted((folder / SNAPSHOTS).glob("*.safetensors"))
    return found + [
        Pass(f"snapshot_{path.stem}", path, quickest, config.snapshot_samples, "snapshots") for path in snapshots
    ]


def scales(run: Run, config: EvalConfig) -> list[float]:
    """Those of the guidance scales to try that the run's model knows: learned ones, or all of a diffusion model's."""
    traits = run.objective.traits
    anything = not traits.few_step and traits.unlabelled and run.weights is None
    low, high = traits.guidance or ((0.0, math.inf) if anything else (1.0, 1.0))
    return [s for s in config.guidance if run.conditional and low <= s <= high]


def weights_at(run: Run, folder: Path, sampler: Sampler) -> Path:
    """The weight file that a row samples: the final one, or the snapshot of its moment."""
    share = run.objective.moment(sampler)
    if share == 1:
        return folder / WEIGHTS
    return folder / SNAPSHOTS / f"{snapshot_images(run.train, round(share * run.train.snapshots)):09d}.safetensors"


def row_names(samplers: Sequence[Sampler]) -> list[str]:
    """A name for each row of a run: its number of function evaluations, with the sampler's name where two share it."""
    count = Counter(sampler.nfe for sampler in samplers)
    names = [f"nfe_{s.nfe}" if count[s.nfe] == 1 else f"nfe_{s.nfe}_{s.name}" for s in samplers]
    return [name if names.count(name) == 1 else f"{name}_{index}" for index, name in enumerate(names)]


@dataclass(frozen=True)
class Shards:
    """The shards of an evaluation, as files in `store`. They depend on neither which worker did them nor when."""

    store: Path
    config: EvalConfig
    run: Run
    extractors: Sequence[FeatureExtractor]
    device: str = "cpu"
    to_images: Callable[[Tensor], Tensor] = to_uint8  # of what a sampler gives
    training: Training | None = None  # images that the first samples of every row are compared with
    class_counts: tuple[int, ...] = ()  # in proportion to which classes are drawn; none: all alike
    captions: Tensor | None = None  # that are drawn from, int64 (N, L), where networks read captions

    def units(self, wanted: Sequence[Pass]) -> list[Unit]:
        """All shards of some passes."""
        each = self.config.shard
        return [
            Unit(one, span)
            for one in wanted
            for r in range(one.ranges)
            for span in spans(one.samples, each, r * one.samples)
        ]

    def path(self, unit: Unit) -> Path:
        """Where a finished shard is."""
        return self.store / unit.of.name / f"{unit.span.start:09d}.safetensors"

    def do(self, unit: Unit, on_images: Callable[[int], None]) -> None:
        """Sample and measure a shard, unless it is there; `on_images` gets the size of every batch that is done."""
        if self.path(unit).exists():
            on_images(unit.span.stop - unit.span.start)
            return
        self.path(unit).parent.mkdir(parents=True, exist_ok=True)
        tensors = self._compared(unit, on_images) if unit.of.teacher else self._measured(unit, on_images)
        checkpoint.save(self.path(unit), tensors, {"start": unit.span.start, "stop": unit.span.stop})

    def parts(self, one: Pass) -> list[list[Part]]:
        """The kept part of a pass whose shards are finished: for every range, one for every extractor."""
        units = self.units([one])
        per_range = len(units) // one.ranges
        return [
            [
                joined([self._part(unit, judge) for unit in units[at : at + per_range]], self.config.kept)
                for judge in range(one.judges)
            ]
            for at in range(0, len(units), per_range)
        ]

    def captions_of(self, one: Pass) -> Callable[[Sequence[int]], Tensor]:
        """The captions of samples of a pass by their numbers: rows of words (B, L)."""
        model = self._model(one.weights)

        def captions(rows: Sequence[int]) -> Tensor:
            found = self._labels(rows, model)
            assert found is not None, "the run reads captions"
            return found

        return captions

    def told(self, one: Pass, count: int) -> np.ndarray:
        """The captions of the first samples of a pass as text, (count,)."""
        reads, rows = self._model(one.weights).shape.reads, self.captions_of(one)(range(count)).tolist()
        assert reads is not None, "the run reads captions"
        if isinstance(reads, Text):
            known = captions_of(reads.encoder)
            return np.array([known[number] for (number,) in rows])
        return np.array([reads.decode(row) for row in rows])

    def shown(self, one: Pass) -> np.ndarray:
        """The first images of a pass, uint8 (K, C, H, W)."""
        return checkpoint.load(self.path(self.units([one])[0]), "shown")[0][""].numpy()

    def nearest(self, one: Pass) -> Nearest | None:
        """The nearest training images of the first samples of a row; None where they were not looked for."""
        if not self._searched(one):
            return None
        units = self.units([one])
        found = [checkpoint.load(self.path(unit), "nearest/")[0] for unit in units if unit.span.start < self._most(one)]
        return Nearest(*(torch.cat([named[name] for named in found]) for name in Nearest._fields))

    def time(self, one: Pass) -> RowTime:
        """The speed of a pass whose shards are finished. Latency is measured now, after a call for warming up."""
        seconds = sum(float(checkpoint.load(self.path(unit), "seconds")[0][""]) for unit in self.units([one]))
        model = self._model(one.weights)
        trained, calls = self.run.objective.model(model.denoiser), list[float]()
        labels = self._labels([0], model)
        labels = labels if labels is None else labels.to(self.device)
        while len(calls) < 2 or (len(calls) <= _CALLS and sum(calls[1:]) < _SECONDS):
            start = time.perf_counter()
            source = NoiseSource(self.config.seed, [0], self.device)
            self.to_images(one.sampler(trained, _shape(model), source, labels)).cpu()
            calls.append(time.perf_counter() - start)
        return RowTime(
            nfe=one.sampler.nfe,
            sampler=one.sampler.name,
            latency=statistics.median(calls[1:]),
            images_per_second=one.samples * one.ranges / seconds,
            batch=min(self.config.batch, self.config.shard, one.samples),
        )

    def _searched(self, one: Pass) -> bool:
        return one.place == "records" and not one.teacher and self.training is not None and self.config.nearest > 0

    def _most(self, one: Pass) -> int:
        return min(self.config.nearest, one.samples)

    def errors(self, one: Pass) -> Tensor:
        """The squared errors of a pass that is compared with a teacher, one per image."""
        return torch.cat([checkpoint.load(self.path(unit), "errors")[0][""] for unit in self.units([one])])

    def _part(self, unit: Unit, judge: int) -> Part:
        named, meta = checkpoint.load(self.path(unit), f"{judge}/")
        moments = Moments(meta["stop"] - meta["start"], named["mean"], named["cov"])
        return Part(moments, named["features"])

    def _measured(self, unit: Unit, on_images: Callable[[int], None]) -> dict[str, Tensor]:
        one, (start, stop) = unit
        model, offset = self._model(one.weights), start % one.samples
        first: list[Tensor] = []
        compared: list[Tensor] = []
        most = max(0, self._most(one) - start) if self._searched(one) else 0
        seconds = 0.0

        def watched(batches: Iterator[Tensor]) -> Iterator[Tensor]:
            nonlocal seconds
            begun = time.perf_counter()
            for batch in batches:
                self._wait()
                seconds += time.perf_counter() - begun
                if (left := most - sum(map(len, compared))) > 0:
                    compared.append(batch[:left])
                if start == 0 and sum(map(len, first)) < one.shown:
                    first.append(batch[: one.shown - sum(map(len, first))].cpu())
                yield batch
                on_images(len(batch))
                begun = time.perf_counter()

        trained = self.run.objective.model(model.denoiser)
        batches = generate(
            one.sampler, trained, _shape(model), range(start, stop), seed=self.config.seed,
            batch=self.config.batch, labels=lambda rows: self._labels(rows, model), device=self.device,
            to_images=self.to_images,
        )  # fmt: skip
        keep = max(0, self.config.kept - offset)
        extractors = self.extractors[: one.judges]
        parts = collect(watched(batches), extractors, shard=self.config.shard, keep=keep, device=self.device)
        tensors = {"shown": torch.cat(first)} if first else {}
        tensors["seconds"] = torch.tensor(seconds, dtype=torch.float64)
        if compared and self.training is not None:
            found = self.training.nearest(torch.cat(compared), self.device)
            tensors |= {f"nearest/{name}": value for name, value in found._asdict().items()}
        for judge, part in enumerate(parts):
            tensors |= {f"{judge}/mean": part.moments.mean, f"{judge}/cov": part.moments.cov}
            tensors[f"{judge}/features"] = part.features
        return tensors

    def _compared(self, unit: Unit, on_images: Callable[[int], None]) -> dict[str, Tensor]:
        """Errors to the teacher's probability-flow end points from the same noise."""
        one, (start, stop) = unit
        assert one.teacher is not None
        model, teacher = self._model(one.weights), self._model(one.teacher)
        trained = self.run.objective.model(model.denoiser)
        truth: Sampler = ode_sampler(teacher.diffusion, self.config.teacher_steps)
        if isinstance(one.sampler, GuidedSampler):
            truth = GuidedSampler(truth, one.sampler.s)
        seed = self.config.seed
        errors, first = [], []
        for at in range(start, stop, self.config.batch):
            rows = range(at, min(at + self.config.batch, stop))
            labels = self._labels(rows, model)
            labels = labels if labels is None else labels.to(self.device)
            ours = one.sampler(trained, _shape(model), NoiseSource(seed, rows, self.device), labels)
            theirs = truth(teacher.denoiser, _shape(model), NoiseSource(seed, rows, self.device), labels)
            errors.append(squared_errors(ours, theirs).cpu())
            if at < one.shown:
                first.append(self.to_images(theirs[: one.shown - at]).cpu())
            on_images(len(rows))
        return {"errors": torch.cat(errors), **({"shown": torch.cat(first)} if first else {})}

    def _wait(self) -> None:
        """Wait until the device has done its work, so that the clock tells the time of it."""
        if torch.device(self.device).type == "cuda":
            torch.cuda.synchronize(self.device)

    def _labels(self, rows: Sequence[int], model: LoadedModel) -> Tensor | None:
        return drawn(model.shape, rows, self.config.seed, counts=self.class_counts, captions=self.captions)

    @cached_property
    def _model(self) -> Callable[[Path], LoadedModel]:
        def model(path: Path) -> LoadedModel:
            loaded = load_model(path, device=self.device)
            for_samples(loaded.denoiser, self.run.train, self.device)
            return loaded

        return lru_cache(maxsize=2)(model)


def _shape(model: LoadedModel) -> tuple[int, int, int]:
    return model.shape.channels, model.shape.resolution, model.shape.resolution
