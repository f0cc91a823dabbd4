"""Edits of known images by several models, with their errors against the truth."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from cmcore.assemble.editing import Task, known_part, restore
from cmcore.assemble.results import TrainedRun
from cmcore.report.gallery import Edit, Edited
from cmcore.sample.known import grey
from cmcore.tensors import mean_per_sample, to_float, to_uint8

TASKS: tuple[Task, ...] = ("inpaint", "colourise", "super-resolution")


def hole(resolution: int) -> Tensor:
    """The missing square (1, 1, R, R) of the gallery: the middle half of each side."""
    missing = torch.zeros(1, 1, resolution, resolution, dtype=torch.bool)
    quarter = resolution // 4
    missing[..., quarter : resolution - quarter, quarter : resolution - quarter] = True
    return missing


def edits(
    runs: Sequence[TrainedRun],
    truth: Tensor,
    *,
    steps: Sequence[int],
    factor: int = 4,
    seed: int = 0,
    on_edit: Callable[[str], None] = lambda _: None,
) -> list[Edit]:
    """Every task by every model at every number of steps, from the same noise.

    Args:
        runs: models of such images.
        truth: uint8 (N, C, R, R), of which each task takes a part away.
        steps: evaluations, at most; 40 in arXiv 2303.01469.
        factor: of super-resolution.
        seed: of the noise.
        on_edit: told what begins.

    Returns:
        The edits that suit the images: colour is taken only where there is some.
    """
    found = []
    for task in TASKS:
        if task == "colourise" and truth.shape[1] != 3:
            continue
        images, size, results = to_float(truth), truth.shape[-1], []
        for run in runs:
            known = known_part(
                task, images.to(run.device), missing=hole(size).to(run.device), factor=factor, resolution=size
            )
            for count in steps:
                on_edit(f"{task} {run.name} {count}")
                labels = run.labels(len(truth), seed=seed)
                x, nfe = restore(run, known, len(truth), steps=count, seed=seed, labels=labels)
                known_error, x = known.error(x), x.cpu()
                error = mean_per_sample((x.clamp(-1, 1) - images.double()) ** 2).sqrt()
                results.append(
                    Edited(
                        model=run.name, nfe=nfe, images=to_uint8(x).numpy(), error=float(error.mean()),
                        standard_error=float(error.std() / len(error) ** 0.5), known_error=known_error,
                    )
                )  # fmt: skip
        shown = known_part(task, images, missing=hole(size), factor=factor, resolution=size).shown()
        if task == "colourise":  # zeros along the axes of colour would be purple
            shown = grey(images).expand_as(images)
        found.append(Edit(task=task, known=to_uint8(shown).numpy(), results=results))
    return found
