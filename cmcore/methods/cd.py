"""CD: consistency distillation of a diffusion teacher (Song et al., arXiv 2303.01469, Alg. 2)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from cmcore.config import require
from cmcore.consistency.distances import DistanceName, distance, services
from cmcore.consistency.distillation import taught_pair
from cmcore.consistency.pairs import uniform_pair
from cmcore.diffusion.guidance import Scales, check_scales, guidance_inputs
from cmcore.diffusion.settings import DiffusionConfig
from cmcore.methods.base import (
    TEACHER,
    Action,
    Batch,
    LossOut,
    Method,
    Nets,
    Network,
    Progress,
    Traits,
    following,
    moved_target,
)
from cmcore.rng import Draws


@dataclass(frozen=True, kw_only=True)
class Config:
    """The paper's constants for CIFAR-10 (Table 3)."""

    N: int = 18  # grid points
    solver: Literal["euler", "heun"] = "heun"
    distance: DistanceName = "lpips"
    huber_c: float = 0.03  # of pseudo_huber only
    mu: float = 0.0  # decay of the EMA target; 0 takes the online network itself
    guidance: Scales | None = None  # range of the teacher's guidance scale, which the student learns (as in sCM)

    def __post_init__(self) -> None:
        require(self.N >= 2, "N", "at least 2", self.N)
        require(0 <= self.mu < 1, "mu", "a number in [0, 1)", self.mu)
        require(self.huber_c > 0, "huber_c", "a positive number", self.huber_c)
        check_scales(self.guidance)


@dataclass(frozen=True)
class CD(Method):
    """d(f(x_{t_{n+1}}, t_{n+1}), sg f(x^_{t_n}, t_n)), where the teacher's ODE step makes x^."""

    config: Config
    diffusion: DiffusionConfig

    @property
    def traits(self) -> Traits:
        """A consistency model with exact boundary, taught by a diffusion model, perhaps at many guidance scales."""
        return Traits(
            boundary=True,
            teacher="diffusion",
            inputs=guidance_inputs(self.config.guidance),
            guidance=self.config.guidance,
            services=services(self.config.distance),
        )

    @property
    def networks(self) -> Mapping[str, Network]:
        """A teacher, and an EMA target unless mu = 0."""
        return {TEACHER: Network(start="teacher"), **moved_target(self.config.mu)}

    def loss(self, nets: Nets, batch: Batch, progress: Progress, draws: Draws) -> LossOut:
        """lambda = 1, as in the paper."""
        del progress  # the grid is fixed
        t, r = uniform_pair(draws.uniform(stream="level"), self.config.N, self.diffusion)
        x_t, x_r, labels = taught_pair(
            nets.teacher, self.config.solver, batch.x, t, r, batch.labels, self.config.guidance, draws
        )
        with torch.no_grad(), draws.dropout():
            target = (nets.target if self.config.mu > 0 else nets.student)(x_r, r, labels)
        with draws.dropout():
            f = nets.student(x_t, t, labels)
        loss = distance(self.config.distance, self.config.huber_c)(f, target)
        return LossOut(loss, {})

    def after(self, progress: Progress) -> Sequence[Action]:
        """The target, where there is one, follows the student with constant decay mu."""
        del progress
        return following(self.config.mu)


def build(config: Config, diffusion: DiffusionConfig) -> CD:
    """The method for a noise range."""
    return CD(config, diffusion)
