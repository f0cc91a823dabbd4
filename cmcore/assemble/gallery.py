"""Edits of known images by several models, with their errors against the truth."""

from collections.abc import Callable, Sequence
from itertools import product

import torch
from torch import Tensor

from cmcore.assemble.editing import Task, can_restore, known_part, restore
from cmcore.assemble.results import TrainedRun
from cmcore.assemble.run import Run
from cmcore.report.gallery import Edit, Edited
from cmcore.sample.known import Known, grey
from cmcore.tensors import mean_per_sample, to_float, to_uint8

LEAST = 4  # pixels of a side that super-resolution starts from
COUNT = 16  # images of the gallery
STEPS = (10, 40)  # evaluations, at most; 40 in arXiv 2303.01469


def hole(resolution: int) -> Tensor:
    """The missing square (1, 1, R, R) of the gallery: the middle half of each side."""
    missing = torch.zeros(1, 1, resolution, resolution, dtype=torch.bool)
    quarter = resolution // 4
    missing[..., quarter : resolution - quarter, quarter : resolution - quarter] = True
    return missing


def factor_of(resolution: int) -> int:
    """The factor of super-resolution that suits images of a side: 4, else 2; 0 where neither does."""
    return next((f for f in (4, 2) if resolution % f == 0 and resolution // f >= LEAST), 0)


def tasks_of(channels: int, factor: int) -> list[Task]:
    """The edits that suit images: colour is taken only where there is some."""
    tasks: list[Task] = ["inpaint"]
    if channels == 3:
        tasks.append("colourise")
    if factor:
        tasks.append("super-resolution")
    return tasks


def edit_passes(run: Run, channels: int, resolution: int) -> int:
    """Passes through the network of a run for the gallery, at most; 0 where its steps are too fixed."""
    if not can_restore(run.objective, run.sampling(2)):
        return 0
    return COUNT * sum(STEPS) * len(tasks_of(channels, factor_of(resolution)))


def edits(
    runs: Sequence[TrainedRun],
    truth: Tensor,
    *,
    steps: Sequence[int],
    factor: int = 4,
    seed: int = 0,
    labels: Tensor | None = None,
    on_edit: Callable[[str], None] = lambda _: None,
) -> list[Edit]:
    """Every task by every model at every number of steps, from the same noise.

    Args:
        runs: models of such images.
        truth: uint8 (N, C, R, R), of which each task takes a part away.
        steps: evaluations, at most.
        factor: of super-resolution; 0 for none.
        seed: of the noise.
        labels: (N,), or captions (N, L), for conditional networks; by default drawn.
        on_edit: told what begins.

    Returns:
        The edits of `tasks_of`.
    """
    images, found = to_float(truth), []
    for task in tasks_of(truth.shape[1], factor):
        results = []
        for run, count in product(runs, steps):
            on_edit(f"{task} {run.name} {count}")
            own = run.labels(len(truth), seed=seed) if labels is None or not run.model.shape.labelled else labels
            x, nfe, known_error = _restored(run, task, images, steps=count, factor=factor, seed=seed, labels=own)
            error = mean_per_sample((x.clamp(-1, 1) - images.double()) ** 2).sqrt()
            results.append(
                Edited(
                    model=run.name, steps=count, nfe=nfe, images=to_uint8(x).numpy(), error=float(error.mean()),
                    standard_error=float(error.std(correction=min(1, len(error) - 1)) / len(error) ** 0.5),
                    known_error=known_error,
                )
            )  # fmt: skip
        shown = _known(task, images, factor).shown()
        if task == "colourise":  # zeros along the axes of colour would be purple
            shown = grey(images).expand_as(images)
        found.append(Edit(task=task, known=to_uint8(shown).numpy(), results=results))
    return found


def _known(task: Task, images: Tensor, factor: int) -> Known:
    size = images.shape[-1]
    return known_part(task, images, missing=hole(size).to(images.device), factor=factor, resolution=size)


def _restored(
    run: TrainedRun, task: Task, images: Tensor, *, steps: int, factor: int, seed: int, labels: Tensor | None
) -> tuple[Tensor, int, float]:
    """Results on the CPU, their NFE and the largest error of their known part; as many at once as suit the device."""
    parts, nfe, known_error = [], 0, 0.0
    for start in range(0, len(images), run.batch):
        rows = range(start, min(start + run.batch, len(images)))
        here = slice(rows.start, rows.stop)
        known = _known(task, images[here].to(run.device), factor)
        own = None if labels is None else labels[here].to(run.device)
        x, nfe = restore(run, known, rows, steps=steps, seed=seed, labels=own)
        known_error = max(known_error, known.error(x))
        parts.append(x.cpu())
    return torch.cat(parts), nfe, known_error
