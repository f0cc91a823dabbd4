"""The protocol of a method: all that trainer, evaluator, searches, plan and networks need to know of it.

A method is one file: a `Config` (frozen, keyword-only, the paper's constants as defaults) and a function `build(config,
diffusion)` that returns a `Method`. The base class carries every default, so a file says only how its method differs.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

from torch import Tensor, nn

from cmcore.diffusion.inputs import GUIDANCE, Input
from cmcore.diffusion.ode import Denoise
from cmcore.diffusion.precond import Denoiser, Labels
from cmcore.rng import Draws
from cmcore.sample.base import Sampler
from cmcore.sample.builtin import BuiltIn
from cmcore.sample.guided import GuidedSampler
from cmcore.sample.presets import diffusion_samplers, few_step_sampler
from cmcore.sample.settings import Sampling

STUDENT, TEACHER, TARGET = "student", "teacher", "target"


@dataclass(frozen=True, kw_only=True)
class Network:
    """A network that takes part in the training beside the student."""

    start: Literal["new", "student", "init", "teacher"] = "new"  # whose architecture and weights it begins with
    role: Literal["trained", "moved", "frozen"] = "frozen"  # moved: changed by the actions of `Method.after` alone
    player: str = STUDENT  # whose optimiser trains it
    make: Callable[..., nn.Module] | None = None  # builds a new one, under a seed of the run, from that of `start`
    dropout: bool = True  # whether a moved network drops units as the student does; a frozen one never does


@dataclass(frozen=True, kw_only=True)
class Traits:
    """Facts about a configured method."""

    few_step: bool = True  # maps noise to images in one evaluation; a diffusion model needs an ODE solver
    boundary: bool = False  # the student has the eps-shifted scalings, for which f(x, sigma_min) = x exactly
    teacher: Literal["none", "diffusion", "few_step"] = "none"  # the kind of run that `teacher` has to name
    inputs: tuple[Input, ...] = ()  # of the network, beside the noise level and the labels
    guidance: tuple[float, float] | None = None  # least and largest guidance scale that the student learns
    unlabelled: bool = False  # also learns images without their labels, so that a diffusion model can be guided
    services: tuple[str, ...] = ()  # networks from elsewhere that the loss asks for, such as "lpips"
    group: int = 1  # rows of a batch that are never cut apart
    image_counts: tuple[str, ...] = ()  # options counted in images; a shorter run shrinks them in proportion
    second_order: bool = False  # its loss holds a derivative of the network that is differentiated once more
    first_step: float = 0.0  # share of the run after which its curriculum takes the first step


class Batch(NamedTuple):
    """Training images x (B, C, H, W) in [-1, 1], and the condition of the networks: see `Condition`."""

    x: Tensor
    labels: Labels


class Nets:
    """The networks of a run by name. The student is always there; the others are those of `Method.networks`."""

    def __init__(self, modules: Mapping[str, nn.Module]) -> None:
        self.modules = dict(modules)

    def __getitem__(self, name: str) -> Any:
        return self.modules[name]

    @property
    def student(self) -> Denoiser:
        """The denoiser that is trained."""
        return self[STUDENT]

    @property
    def teacher(self) -> Denoiser:
        """The network called "teacher"."""
        return self[TEACHER]

    @property
    def target(self) -> Denoiser:
        """The network called "target"."""
        return self[TARGET]


@dataclass(frozen=True)
class Progress:
    """The position of a step in the run. Every curriculum is a pure function of it."""

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

    @property
    def next(self) -> "Progress":
        """The position after this step."""
        return replace(self, images=self.images + self.batch)


class LossOut(NamedTuple):
    """Per-sample loss (B,) and detached scalars to log. The trainer takes the mean over the global batch."""

    loss: Tensor
    scalars: dict[str, Tensor | float]


class Blend(NamedTuple):
    """Move a network: weights <- decay weights + (1 - decay) source."""

    network: str
    decay: float
    source: str = STUDENT


class Copy(NamedTuple):
    """Give a network the weights of another; of the student, also its evaluated average."""

    network: str
    source: str = STUDENT
    averaged: bool = False


class Restart(NamedTuple):
    """Begin a stage of the run: a new optimiser (and averages, of the student) and learning-rate schedule."""

    until: int  # images seen when the stage ends: the end of its learning-rate schedule
    player: str = STUDENT


Action = Blend | Copy | Restart


def moved_target(mu: float) -> dict[str, Network]:
    """An EMA target of the student; none with mu = 0, where the student itself is the target."""
    return {TARGET: Network(start="student", role="moved")} if mu > 0 else {}


def following(mu: float) -> Sequence[Action]:
    """The target of `moved_target`, where there is one, follows the student with constant decay mu."""
    return (Blend(TARGET, mu),) if mu > 0 else ()


class Method(ABC):
    """One training objective. It holds its configuration only: no optimiser, no logging, no state."""

    @property
    def traits(self) -> Traits:
        """Facts that hold for this configuration."""
        return Traits()

    @property
    def networks(self) -> Mapping[str, Network]:
        """The networks beside the student, by name."""
        return {}

    @property
    def players(self) -> tuple[str, ...]:
        """Everyone who trains, the student first: each has an optimiser of its own."""
        others = (network.player for network in self.networks.values() if network.role == "trained")
        return tuple(dict.fromkeys((STUDENT, *others)))

    def turns(self, progress: Progress) -> Sequence[str]:
        """The players that take an optimiser step now, in order; a name may stand more than once."""
        del progress
        return (STUDENT,)

    @abstractmethod
    def loss(self, nets: Nets, batch: Batch, progress: Progress, draws: Draws) -> LossOut:
        """The student's loss."""

    def loss_of(self, player: str, nets: Nets, batch: Batch, progress: Progress, draws: Draws) -> LossOut:
        """The loss of a player; a method with several players overrides it. `draws` are the turn's own."""
        del player
        return self.loss(nets, batch, progress, draws)

    def after(self, progress: Progress) -> Sequence[Action]:
        """Changes of networks that follow the step at `progress`: moving averages, stages."""
        del progress
        return ()

    def model(self, denoiser: Denoiser) -> Denoise:
        """The function that samplers call, from the trained network; by default the denoiser itself."""
        return denoiser

    def diffusion_model(self, denoiser: Denoiser) -> Denoise | None:
        """The denoiser of the data that the trained network holds, for likelihoods; None where it holds none."""
        return None if self.traits.few_step else denoiser

    def samplers(self, sampling: Sampling) -> list[Sampler]:
        """The samplers behind the rows of the tables; the first also shows how a run gets on.

        By default the ODE solvers for a diffusion model, one and two steps for any other.
        """
        d = sampling.diffusion
        if not self.traits.few_step:
            return [self.guided(sampler, sampling) for sampler in diffusion_samplers(sampling)]
        return [self.guided(few_step_sampler(d, *levels), sampling) for levels in ((), (sampling.two_step,))]

    def moment(self, sampler: Sampler) -> float:
        """The share of the run after which the weights of a row were there; 1 for the final ones.

        Every other moment has to be one of the run's snapshots.
        """
        del sampler
        return 1.0

    def scan(self, sampling: Sampling, levels: Sequence[float]) -> list[Sampler]:
        """Samplers that try the level of a second step, one for each that suits; none for a diffusion model.

        Their `noise_levels` are sigma_max and the level.
        """
        few = levels if self.traits.few_step else ()
        return [self.guided(few_step_sampler(sampling.diffusion, level), sampling) for level in few]

    def guided(self, sampler: Sampler, sampling: Sampling) -> Sampler:
        """The sampler under the run's guidance, or named after the scale in the weights; the very same without."""
        traits, s = self.traits, sampling.guidance
        if traits.guidance and traits.guidance[0] == traits.guidance[1] and GUIDANCE not in traits.inputs:
            return BuiltIn(sampler, traits.guidance[0])
        return sampler if s == 1 else GuidedSampler(sampler, s, learned=traits.few_step)
