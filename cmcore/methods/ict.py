"""iCT: improved consistency training (Song and Dhariwal, arXiv 2310.14189)."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from cmcore.config import require
from cmcore.consistency import weights
from cmcore.consistency.curriculum import ict_points
from cmcore.consistency.distances import huber_constant, pseudo_huber
from cmcore.consistency.pairs import lognormal_pair, uniform_pair
from cmcore.diffusion.settings import DiffusionConfig
from cmcore.methods.base import Action, Batch, LossOut, Method, Nets, Network, Progress, Traits, following, moved_target
from cmcore.rng import Draws
from cmcore.tensors import expand_like


@dataclass(frozen=True, kw_only=True)
class Config:
    """The paper's constants (sec. 3, Table 2)."""

    s0: int = 10  # gaps of the grid at the start
    s1: int = 1280  # gaps of the grid at the end
    P_mean: float = -1.1
    P_std: float = 2.0
    huber_c: float = 0.0  # 0 means 0.00054 sqrt(d)
    # The choices that the paper leaves behind, for its ablations.
    levels: Literal["lognormal", "uniform"] = "lognormal"  # uniform: over the grid, as in CT
    weighting: Literal["gap", "none"] = "gap"  # 1/(t - r), or 1
    mu: float = 0.0  # decay of an EMA target; 0 takes the online network itself

    def __post_init__(self) -> None:
        require(self.s0 >= 1, "s0", "at least 1", self.s0)
        require(self.s1 >= self.s0, "s1", f"at least s0 = {self.s0}", self.s1)
        require(self.P_std > 0, "P_std", "a positive number", self.P_std)
        require(self.huber_c >= 0, "huber_c", "at least 0", self.huber_c)
        require(0 <= self.mu < 1, "mu", "a number in [0, 1)", self.mu)

    @property
    def first_step(self) -> float:
        """The share of the run after which the curriculum takes its first step."""
        return 1 / (math.log2(self.s1 // self.s0) + 1) if self.s1 >= 2 * self.s0 else 0.0


@dataclass(frozen=True)
class ICT(Method):
    """1/(t_{n+1} - t_n) PseudoHuber(f(x + t_{n+1} z, t_{n+1}), sg f(x + t_n z, t_n)), f the online network twice."""

    config: Config
    diffusion: DiffusionConfig

    @property
    def traits(self) -> Traits:
        """A consistency model with exact boundary, trained from data alone."""
        return Traits(boundary=True, first_step=self.config.first_step)

    @property
    def networks(self) -> Mapping[str, Network]:
        """An EMA target unless mu = 0."""
        return moved_target(self.config.mu)

    def loss(self, nets: Nets, batch: Batch, progress: Progress, draws: Draws) -> LossOut:
        """Same noise, same dropout mask, same weights on both sides."""
        cfg = self.config
        N = ict_points(progress.iteration, progress.iterations, cfg.s0, cfg.s1)
        u = draws.uniform(stream="level")
        if cfg.levels == "uniform":
            t, r = uniform_pair(u, N, self.diffusion)
        else:
            t, r = lognormal_pair(u, N, self.diffusion, cfg.P_mean, cfg.P_std)
        z = draws.normal(batch.x.shape[1:], stream="noise")
        with torch.no_grad(), draws.dropout():
            target = (nets.target if cfg.mu > 0 else nets.student)(batch.x + expand_like(r, z) * z, r, batch.labels)
        with draws.dropout():
            f = nets.student(batch.x + expand_like(t, z) * z, t, batch.labels)
        c = cfg.huber_c or huber_constant(batch.x[0].numel())
        gap = pseudo_huber(f, target, c)
        loss = weights.inverse_gap(t, r).to(gap.dtype) * gap if cfg.weighting == "gap" else gap
        return LossOut(loss, {"N": float(N), "distance": gap.detach().mean()})

    def after(self, progress: Progress) -> Sequence[Action]:
        """The target, where there is one, follows the student with constant decay mu."""
        del progress
        return following(self.config.mu)


def build(config: Config, diffusion: DiffusionConfig) -> ICT:
    """The method for a noise range."""
    return ICT(config, diffusion)
