"""A search as the runs that it trains and the number that it ranks them by."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from cmcore.assemble.evaluation import captions_drawn, classes_drawn
from cmcore.assemble.models import ModelShape, drawn
from cmcore.assemble.project import Project, overridden
from cmcore.assemble.run import Run
from cmcore.assemble.training import Inputs, fingerprint, train_run
from cmcore.config import digest, merge, plain
from cmcore.data.images import ImageData
from cmcore.diffusion.precond import Denoiser
from cmcore.evaluate.frechet import frechet_distance
from cmcore.evaluate.moments import Moments
from cmcore.evaluate.reference import facts_of, load_reference
from cmcore.sample.stream import generate
from cmcore.search.space import POSTHOC_STD, TuneConfig, nested
from cmcore.tracking.base import Null
from cmcore.train.settings import EmaConfig

TUNED = "tuned"  # the EMA profile that a post-hoc search adds to a run
TRACKED = "posthoc_tracked"
WORST = 1e6  # the score of a trial that cannot go on; searchers need a finite number


@dataclass(frozen=True)
class Job:
    """All that a trial needs beside its values. Paths are absolute, as trials run on other machines too."""

    project: Project
    name: str  # of the entry of `tune`
    config: TuneConfig  # that entry
    inputs: Inputs
    reference: Path
    folder: Path  # of this search's trials

    @property
    def base(self) -> Run:
        """The run that is searched."""
        return self.project.run(self.config.base)

    @property
    def budget(self) -> int:
        """Images of a full trial."""
        return self.config.images or self.base.train.images


def search_fingerprint(project: Project, search: TuneConfig, inputs: Inputs, reference: Path) -> str:
    """The digest that names the folder of a search, so that a changed one never continues an old one."""
    config = plain(search)
    for how in ("concurrency", "confirm"):  # neither decides what a trial gives
        del config[how]
    run = project.run(search.base)
    facts = facts_of(reference)
    return digest([config, fingerprint(run, inputs), facts.extractor.digest, facts.data.digest])


def overrides(config: TuneConfig, values: Mapping[str, Any]) -> dict[str, Any]:
    """Tried values as changes to the run's entry, in terms of the full run."""
    if config.kind == "posthoc":
        return {"train": {"ema": {TUNED: {"power_std": values[POSTHOC_STD]}}, "eval_ema": TUNED}}
    changes: dict[str, Any] = {}
    for path, value in values.items():
        changes = merge(changes, nested(path, value))
    return changes


def scaled(run: Run, images: int) -> Run:
    """The run with another number of images, and all that is counted in images in the same proportion."""
    share = images / run.train.images
    if share == 1:
        return run
    counts = run.objective.traits.image_counts
    options = {name: round(value * share) for name, value in vars(run.method_config).items() if name in counts}
    ema = {name: replace(profile, half_life=profile.half_life * share) for name, profile in run.train.ema.items()}
    ramp, ref = run.train.lr_ramp_images, run.train.lr_ref_images
    train = replace(
        run.train,
        images=images,
        ema=ema,
        lr_ramp_images=round(ramp * share),
        lr_ref_images=max(1, round(ref * share)) if ref else 0,
    )
    return replace(run, train=train, method_config=replace(run.method_config, **options))


def trial_run(job: Job, values: Mapping[str, Any]) -> Run:
    """The run of a trial; a ConfigError where its values do not go together."""
    config = job.config
    run = scaled(overridden(job.project, config.base, overrides(config, values)), job.budget)
    return replace(run, train=replace(run.train, seed=config.seed, snapshots=config.parts))


def score(job: Job, run: Run, denoiser: Denoiser, seed: int, device: str) -> float:
    """The Frechet distance of few-step samples of the denoiser, made from the noise of that seed."""
    data, config = ImageData.open(job.inputs.data), job.project.sections.eval
    shape, counts = ModelShape.of(data, run.conditional), classes_drawn(run, config, data.manifest)
    captions = captions_drawn(run, data.told, alike=config.labels == "uniform")
    sampler = next(s for s in run.objective.samplers(run.sampling(steps=2)) if s.nfe == job.config.nfe)
    reference = load_reference(job.reference)
    batches = generate(
        sampler,
        run.objective.model(denoiser),
        (shape.channels, shape.resolution, shape.resolution),
        range(job.config.samples),
        seed=seed,
        batch=config.batch,
        labels=lambda rows: drawn(shape, rows, seed, counts=counts, captions=captions),
        device=device,
    )
    features = torch.cat([reference.extractor(batch) for batch in batches])
    distance = frechet_distance(Moments.of(features), reference.moments)
    return min(distance, WORST) if math.isfinite(distance) else WORST


def posthoc_run(job: Job, seed: int, std: float = 0.0) -> Run:
    """The base run with the two profiles of post-hoc EMA, and with one of the width `std` that is tracked directly."""
    config, run = job.config, scaled(job.base, job.budget)
    ema = dict(run.train.ema)
    ema |= {f"posthoc_{index}": EmaConfig(power_std=width) for index, width in enumerate(config.stds)}
    if std:
        ema[TRACKED] = EmaConfig(power_std=std)
    return replace(run, train=replace(run.train, seed=seed, snapshots=config.snapshots, ema=ema))


def train_once(job: Job, run: Run, name: str, device: str = "cpu") -> Path:
    """Train, or continue, a run of this search outside of the trials and return the folder of its results."""
    folder = job.folder / name / fingerprint(run, job.inputs)
    return train_run(run, job.inputs, folder, tracker=Null(), on_progress=lambda done, total: None, device=device)
