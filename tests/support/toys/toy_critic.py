"""Toy: two players. A critic learns to tell images from denoised ones, and the student learns to please it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from cmcore.diffusion.settings import DiffusionConfig
from cmcore.methods.base import STUDENT, Batch, LossOut, Method, Nets, Network, Progress, Traits
from cmcore.rng import Draws
from cmcore.tensors import expand_like, mean_per_sample

CRITIC = "critic"


@dataclass(frozen=True, kw_only=True)
class Config:
    """Weight of the critic's opinion, and its turns in a step."""

    weight: float = 0.1
    turns: int = 2


class Critic(nn.Module):
    """Images (B, C, H, W) -> (B,): a linear layer on mean and mean square."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(torch.stack([mean_per_sample(x), mean_per_sample(x**2)], 1)).squeeze(1)


@dataclass(frozen=True)
class ToyCritic(Method):
    """||D - x||^2 - weight critic(D) for the student, hinge loss for the critic."""

    config: Config
    diffusion: DiffusionConfig

    @property
    def traits(self) -> Traits:
        return Traits(few_step=False)

    @property
    def networks(self) -> Mapping[str, Network]:
        return {CRITIC: Network(role="trained", player=CRITIC, make=Critic)}

    def turns(self, progress: Progress) -> Sequence[str]:
        del progress
        return (*[CRITIC] * self.config.turns, STUDENT)

    def _denoised(self, nets: Nets, batch: Batch, draws: Draws) -> Tensor:
        sigma = torch.exp(1.2 * draws.normal(stream="level", dtype=torch.float64) - 1.2)
        x = batch.x + expand_like(sigma, batch.x) * draws.normal(batch.x.shape[1:], stream="noise")
        with draws.dropout():
            return nets.student(x, sigma, batch.labels)

    def loss(self, nets: Nets, batch: Batch, progress: Progress, draws: Draws) -> LossOut:
        D = self._denoised(nets, batch, draws)
        opinion = nets[CRITIC](D)
        return LossOut(mean_per_sample((D - batch.x) ** 2) - self.config.weight * opinion, {"opinion": opinion.mean()})

    def loss_of(self, player: str, nets: Nets, batch: Batch, progress: Progress, draws: Draws) -> LossOut:
        if player == STUDENT:
            return self.loss(nets, batch, progress, draws)
        with torch.no_grad():
            D = self._denoised(nets, batch, draws)
        real, made = nets[CRITIC](batch.x), nets[CRITIC](D)
        return LossOut((1 - real).relu() + (1 + made).relu(), {"gap": (real - made).detach().mean()})


def build(config: Config, diffusion: DiffusionConfig) -> ToyCritic:
    return ToyCritic(config, diffusion)
