"""Toy: groups of rows that are never cut apart. All rows of a group share a level and are compared with one another."""

from dataclasses import dataclass

import torch

from cmcore.diffusion.settings import DiffusionConfig
from cmcore.methods.base import Batch, LossOut, Method, Nets, Progress, Traits
from cmcore.rng import Draws
from cmcore.tensors import expand_like, mean_per_sample


@dataclass(frozen=True, kw_only=True)
class Config:
    """Rows of a group."""

    group: int = 4


@dataclass(frozen=True)
class ToyGroups(Method):
    """||D - x||^2 and the squared difference of the group's means of D and of x."""

    config: Config
    diffusion: DiffusionConfig

    @property
    def traits(self) -> Traits:
        return Traits(few_step=False, group=self.config.group)

    def loss(self, nets: Nets, batch: Batch, progress: Progress, draws: Draws) -> LossOut:
        M = self.config.group
        own = torch.exp(1.2 * draws.normal(stream="level", dtype=torch.float64) - 1.2)
        sigma = own.reshape(-1, M)[:, :1].expand(-1, M).reshape(-1)
        x = batch.x + expand_like(sigma, batch.x) * draws.normal(batch.x.shape[1:], stream="noise")
        with draws.dropout():
            error = nets.student(x, sigma, batch.labels) - batch.x
        together = error.reshape(-1, M, *error.shape[1:]).mean(1, keepdim=True).expand(-1, M, *error.shape[1:])
        return LossOut(mean_per_sample(error**2) + mean_per_sample(together.reshape_as(error) ** 2), {})


def build(config: Config, diffusion: DiffusionConfig) -> ToyGroups:
    return ToyGroups(config, diffusion)
