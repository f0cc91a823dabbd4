"""A trained run from Python: its network, and the samplers of its rows in the tables."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from cmcore.assemble.models import LoadedModel, load_model
from cmcore.assemble.project import load_project
from cmcore.assemble.run import Run
from cmcore.assemble.training import WEIGHTS
from cmcore.errors import DataError
from cmcore.sample.base import Sampler
from cmcore.sample.stream import generate
from cmcore.tensors import to_uint8


@dataclass(frozen=True)
class TrainedRun:
    """A run with its weights. Equal seeds give equal images, and image i does not depend on how many are drawn."""

    run: Run
    model: LoadedModel
    samplers: tuple[Sampler, ...]  # of the rows of the tables
    latent: bool = False  # whether its images are latents of an autoencoder
    device: str = "cpu"

    @property
    def nfes(self) -> tuple[int, ...]:
        """The numbers of function evaluations that `sample` offers."""
        return tuple(dict.fromkeys(sampler.nfe for sampler in self.samplers))

    def sample(
        self, count: int, *, nfe: int = 0, seed: int = 0, labels: Sequence[int] | None = None, batch: int = 500
    ) -> Tensor:
        """Draw images, as the evaluation does.

        Args:
            count: how many.
            nfe: which sampler, by its number of function evaluations, the first with it; 0 for the first of all.
            seed: of their noise; with `eval.seed` they are the first images that the evaluation measures.
            labels: one class for each image, for a conditional network; by default each is drawn at random.
            batch: images drawn at once.

        Returns:
            uint8 (count, C, H, W) on the CPU; of a run on latents, the latents in float64.

        Raises:
            ValueError: there is no such sampler, no image is asked for, or the labels do not suit.
        """
        if count < 1:
            raise ValueError(f"count: expected at least 1, got {count}")
        sampler = next((one for one in self.samplers if nfe in (0, one.nfe)), None)
        if sampler is None:
            raise ValueError(f"nfe: expected one of {', '.join(map(str, self.nfes))}, got {nfe}")
        shape, classes = self.model.shape, self.model.shape.classes
        if labels is not None and not classes:
            raise ValueError("labels: expected none, as the network is unconditional")
        if labels is not None and not (len(labels) == count and all(0 <= label < classes for label in labels)):
            raise ValueError(f"labels: expected {count} classes from 0 to {classes - 1}, got {list(labels)}")
        chosen = torch.tensor(labels or [])
        size = (shape.channels, shape.resolution, shape.resolution)
        batches = generate(
            sampler, self.run.objective.model(self.model.denoiser), size, range(count), seed=seed, batch=batch,
            classes=classes, device=self.device, labels=None if labels is None else lambda rows: chosen[list(rows)],
            to_images=torch.clone if self.latent else to_uint8,
        )  # fmt: skip
        return torch.cat([images.cpu() for images in batches])


def open_run(name: str, root: str | Path = ".", *, profile: str = "", device: str = "cpu") -> TrainedRun:
    """Open a trained run of the workload in params.yaml.

    Args:
        name: an entry of `runs`.
        root: the project folder.
        profile: average of the weights, by default the one that is evaluated.
        device: torch device.

    Raises:
        ConfigError: the parameter file is wrong, or it has no such run.
        DataError: the run has no weights yet.
    """
    project = load_project(Path(root) / "params.yaml")
    run = project.run(name)
    weights = Path(root) / "outputs" / project.workload / "runs" / name / WEIGHTS
    if not weights.exists():
        raise DataError(f"{weights} is not there; first run `dvc repro train@{name}`")
    rows = run.objective.samplers(run.sampling(project.sections.eval.teacher_steps))
    samplers = tuple(row for row in rows if run.objective.moment(row) == 1)  # those of the final weights
    latent = project.sections.data.source == "latents"
    return TrainedRun(run, load_model(weights, profile, device=device), samplers, latent, device)
