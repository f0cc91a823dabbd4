"""Before and after: what a search found, on seeds that it did not use."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from cmcore.assemble.models import load_model
from cmcore.assemble.posthoc import reconstruct
from cmcore.assemble.project import overridden
from cmcore.assemble.training import WEIGHTS
from cmcore.search.search import TRACKED, Job, overrides, posthoc_run, score, train_once
from cmcore.search.space import POSTHOC_STD


def confirm(job: Job, values: Mapping[str, Any], seed: int, device: str = "cpu") -> dict[str, float]:
    """The run as it is and with the values found, at full length, with a seed that the search did not use.

    A post-hoc search compares one training's own profile with the found one, directly tracked and reconstructed.
    """
    job = replace(job, config=replace(job.config, images=0))
    if job.config.kind == "posthoc":
        run = posthoc_run(job, seed, values[POSTHOC_STD])
        folder = train_once(job, run, "confirm", device)
        models = {
            "before": load_model(folder / WEIGHTS, device=device),
            "after": load_model(folder / WEIGHTS, TRACKED, device=device),
            "reconstructed": reconstruct(folder, values[POSTHOC_STD], device=device),
        }
        return {name: score(job, run, model.denoiser, seed, device) for name, model in models.items()}
    scores: dict[str, float] = {}
    for name, changes in (("before", {}), ("after", overrides(job.config, values))):
        run = overridden(job.project, job.config.base, changes)
        run = replace(run, train=replace(run.train, seed=seed, snapshots=0))
        model = load_model(train_once(job, run, "confirm", device) / WEIGHTS, device=device)
        scores[name] = score(job, run, model.denoiser, seed, device)
    return scores
