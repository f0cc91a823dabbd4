"""Toy: a few-step teacher that is not the run the student starts from."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from cmcore.diffusion.settings import DiffusionConfig
from cmcore.methods.base import TEACHER, Batch, LossOut, Method, Nets, Network, Progress, Traits
from cmcore.rng import Draws
from cmcore.tensors import expand_like, mean_per_sample


@dataclass(frozen=True, kw_only=True)
class Config:
    """Nothing to choose."""


@dataclass(frozen=True)
class ToyPupil(Method):
    """||f(x_t, t) - f_teacher(x_t, t)||^2."""

    config: Config
    diffusion: DiffusionConfig

    @property
    def traits(self) -> Traits:
        return Traits(teacher="few_step")

    @property
    def networks(self) -> Mapping[str, Network]:
        return {TEACHER: Network(start="teacher")}

    def loss(self, nets: Nets, batch: Batch, progress: Progress, draws: Draws) -> LossOut:
        sigma = torch.exp(2 * draws.normal(stream="level", dtype=torch.float64))
        x = batch.x + expand_like(sigma, batch.x) * draws.normal(batch.x.shape[1:], stream="noise")
        with torch.no_grad():
            target = nets.teacher(x, sigma, batch.labels)
        with draws.dropout():
            return LossOut(mean_per_sample((nets.student(x, sigma, batch.labels) - target) ** 2), {})


def build(config: Config, diffusion: DiffusionConfig) -> ToyPupil:
    return ToyPupil(config, diffusion)
