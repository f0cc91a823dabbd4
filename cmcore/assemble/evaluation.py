"""Evaluation of one run: samples at every number of function evaluations, measured against the references."""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cmcore.assemble.models import LoadedModel, load_model
from cmcore.assemble.project import RANDOM, Run, build_method
from cmcore.assemble.training import SNAPSHOTS, SUMMARY, WEIGHTS
from cmcore.diffusion.grids import karras_grid, with_zero
from cmcore.evaluate.endpoints import endpoint_rmse
from cmcore.evaluate.records import NO_EXTRACTOR, MetricRecord, Provenance, Source, to_json
from cmcore.evaluate.settings import EvalConfig
from cmcore.evaluate.suite import Reference, evaluate_samples, record
from cmcore.rng import NoiseSource
from cmcore.sample.base import Sampler
from cmcore.sample.fewstep import Multistep
from cmcore.sample.solvers import Heun
from cmcore.sample.stream import generate, uniform_labels

SHOWN = 64  # images of every sampler that are kept for the figures


@dataclass(frozen=True)
class Outcome:
    """What an evaluation gives: the data of metrics/<run>.json, and uint8 images by name for the figures."""

    metrics: dict[str, Any]
    samples: dict[str, np.ndarray]


def teacher_sampler(model: LoadedModel, steps: int) -> Heun:
    """EDM's deterministic sampler with `steps` Heun steps: NFE = 2 steps - 1 (arXiv 2206.00364, Alg. 1)."""
    d = model.diffusion
    return Heun(with_zero(karras_grid(steps, d.sigma_min, d.sigma_max, d.rho)))


def samplers(run: Run, model: LoadedModel, config: EvalConfig) -> list[Sampler]:
    """The samplers behind the tables: the ODE solver for a diffusion model, one and two steps for the others."""
    if not build_method(run).few_step:
        return [teacher_sampler(model, config.teacher_steps)]
    high, low = model.diffusion.sigma_max, model.diffusion.sigma_min
    return [Multistep((high,), low), Multistep((high, run.sample.two_step), low)]


def evaluate_run(
    run: Run,
    workload: str,
    config: EvalConfig,
    references: Sequence[Reference],
    folder: Path,
    teacher: Path | None,
    *,
    fid_absent: str,
    on_progress: Callable[[int, int], None],
    device: str = "cpu",
) -> Outcome:
    """Evaluate the results in `folder` (of `train_run`).

    Args:
        run: the resolved run.
        workload: its name, for the records.
        config: what to measure.
        references: real images under one or more extractors; the first one also judges scans and snapshots.
        folder: the run's results.
        teacher: weight file of the run it starts from, for the end-point error; None for a run from random weights.
        fid_absent: why there is no Inception reference, empty if there is one.
        on_progress: called with (images generated, total).
        device: torch device.

    Returns:
        The records and a few images of every sampler.
    """
    model = load_model(folder / WEIGHTS, device=device)
    summary = json.loads((folder / SUMMARY).read_text(encoding="utf-8"))
    few_step = build_method(run).few_step
    snapshots = sorted((folder / SNAPSHOTS).glob("*.safetensors"))
    scan = config.scan if few_step else ()
    distil = teacher is not None and few_step
    count = _Counter(
        on_progress,
        config.samples * (2 if few_step else 1) + config.scan_samples * len(scan)
        + config.snapshot_samples * len(snapshots) + config.endpoints * distil,
    )  # fmt: skip

    def measured(
        sampler: Sampler, loaded: LoadedModel, samples: int, against: Sequence[Reference]
    ) -> list[MetricRecord]:
        source = _source(run, workload, loaded, sampler, config.seed)
        return evaluate_samples(count(_stream(sampler, loaded, samples, config, device)), against, source, config)

    records: list[MetricRecord] = []
    shown: dict[str, np.ndarray] = {}
    for sampler in samplers(run, model, config):
        records += measured(sampler, model, config.samples, references)
        shown[f"nfe_{sampler.nfe}"] = _images(_stream(sampler, model, SHOWN, config, device))
    if distil and teacher is not None:
        source_model = load_model(teacher, device=device)
        one_step, truth = samplers(run, model, config)[0], teacher_sampler(source_model, config.teacher_steps)
        records.append(_endpoint_record(run, workload, config, model, source_model, one_step, truth, device))
        shown["endpoints"] = _images(_stream(truth, source_model, SHOWN, config, device))
        count.add(config.endpoints)
    high, low = model.diffusion.sigma_max, model.diffusion.sigma_min
    scanned = [
        one
        for level in scan
        for one in measured(Multistep((high, level), low), model, config.scan_samples, references[:1])
    ]
    on_the_way: list[MetricRecord] = []
    for path in snapshots:
        early = load_model(path, device=device)
        on_the_way += measured(samplers(run, early, config)[0], early, config.snapshot_samples, references[:1])
    metrics = {
        "workload": workload,
        "run": run.name,
        "method": run.method,
        "init": run.init,
        "parameters": summary["parameters"],
        "images": summary["images"],
        "ema": model.profile,
        "seed": summary["seed"],
        "conditional": run.conditional,
        "fid_absent": fid_absent,
        "records": [to_json(one) for one in records],
        "scan": [to_json(one) for one in scanned],
        "snapshots": [to_json(one) for one in on_the_way],
    }
    return Outcome(metrics, shown)


class _Counter:
    """Counts generated images on their way through."""

    def __init__(self, on_progress: Callable[[int, int], None], total: int) -> None:
        self._done, self._total, self._on_progress = 0, total, on_progress

    def add(self, images: int) -> None:
        self._done += images
        self._on_progress(self._done, self._total)

    def __call__(self, batches: Iterator[Tensor]) -> Iterator[Tensor]:
        for batch in batches:
            yield batch
            self.add(len(batch))


def _stream(sampler: Sampler, model: LoadedModel, samples: int, config: EvalConfig, device: str) -> Iterator[Tensor]:
    shape = (model.shape.channels, model.shape.resolution, model.shape.resolution)
    return generate(
        sampler,
        model.denoiser,
        shape,
        range(samples),
        seed=config.seed,
        batch=config.batch,
        classes=model.shape.classes,
        device=device,
    )


def _images(batches: Iterator[Tensor]) -> np.ndarray:
    return torch.cat(list(batches)).cpu().numpy()


def _source(run: Run, workload: str, model: LoadedModel, sampler: Sampler, seed: int) -> Source:
    return Source(
        workload=workload,
        run=run.name,
        method=run.method,
        fingerprint=model.meta["fingerprint"],
        sampler=sampler.name,
        nfe=sampler.nfe,
        ema=model.profile,
        images=model.meta["images"],
        seed=seed,
        levels=sampler.levels if isinstance(sampler, Multistep) else (),
    )


def _endpoint_record(
    run: Run,
    workload: str,
    config: EvalConfig,
    model: LoadedModel,
    teacher: LoadedModel,
    one_step: Sampler,
    truth: Sampler,
    device: str,
) -> MetricRecord:
    """RMSE in [-1, 1] of one-step samples to the teacher's probability-flow end points from the same noise."""
    shape = (model.shape.channels, model.shape.resolution, model.shape.resolution)
    ours, theirs = [], []
    for start in range(0, config.endpoints, config.batch):
        part = range(start, min(start + config.batch, config.endpoints))
        labels = uniform_labels(part, config.seed, model.shape.classes)
        labels = labels if labels is None else labels.to(device)
        ours.append(one_step(model.denoiser, shape, NoiseSource(config.seed, part, device), labels))
        theirs.append(truth(teacher.denoiser, shape, NoiseSource(config.seed, part, device), labels))
    provenance = Provenance(
        **vars(_source(run, workload, model, one_step, config.seed)),
        extractor=NO_EXTRACTOR,
        extractor_digest=NO_EXTRACTOR,
        reference_digest=teacher.meta["fingerprint"],
        reference_count=config.endpoints,
        samples=config.endpoints,
    )
    return record("endpoint_rmse", endpoint_rmse(torch.cat(ours), torch.cat(theirs)), provenance)


def teacher_of(run: Run, runs_folder: Path) -> Path | None:
    """The weight file of the run it starts from, or None."""
    return None if run.init == RANDOM else runs_folder / run.init / WEIGHTS
