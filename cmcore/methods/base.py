"""What a method is: the protocol that the trainer knows, and nothing else."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from torch import Tensor, nn

from cmcore.diffusion.precond import Denoiser, Labels
from cmcore.rng import Draws


@dataclass(frozen=True)
class Needs:
    """What a method asks the trainer to provide beside the student."""

    teacher: bool = False  # a frozen denoiser, in eval mode: the run named by `init`
    target: bool = False  # an EMA copy of the student that follows `Method.target_decay`
    file: bool = False  # weights that others have trained, instead of training
    heads: dict[str, Callable[[], nn.Module]] = field(default_factory=dict)  # extra modules trained with the student


class Batch(NamedTuple):
    """Training images x (B, C, H, W) in [-1, 1], and what the networks are told: see `Condition`."""

    x: Tensor
    labels: Labels


@dataclass(frozen=True)
class Models:
    """The networks of a run, as the method sees them."""

    student: Denoiser
    teacher: Denoiser | None
    target: Denoiser | None
    heads: nn.ModuleDict


@dataclass(frozen=True)
class Progress:
    """How far the run is. Every curriculum is a pure function of this."""

    images: int  # images seen before this step
    total: int  # images of the whole run
    batch: int  # global batch size; images / batch is the papers' iteration k

    @property
    def fraction(self) -> float:
        """Images seen over the total, in [0, 1)."""
        return self.images / self.total

    @property
    def iteration(self) -> int:
        """The papers' k: optimiser steps taken so far."""
        return self.images // self.batch

    @property
    def iterations(self) -> int:
        """The papers' K: optimiser steps of the whole run."""
        return max(1, self.total // self.batch)


class LossOut(NamedTuple):
    """Per-sample loss (B,) and detached scalars to log. The trainer takes the mean over the global batch."""

    loss: Tensor
    scalars: dict[str, Tensor | float]


class Method(Protocol):
    """One paper's training objective. Holds its config only: no optimiser, no logging, no state."""

    @property
    def needs(self) -> Needs: ...

    @property
    def boundary(self) -> bool:
        """Whether the student uses the eps-shifted scalings, for which f(x, sigma_min) = x exactly."""
        ...

    @property
    def few_step(self) -> bool:
        """Whether the model maps noise to images in one step; a diffusion model needs an ODE solver."""
        ...

    def loss(self, models: Models, batch: Batch, progress: Progress, draws: Draws) -> LossOut: ...

    def target_decay(self, progress: Progress) -> float:
        """mu of the EMA target for the coming update; asked only where `needs.target`."""
        ...
