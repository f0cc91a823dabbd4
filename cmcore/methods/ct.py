"""CT: consistency training without a teacher (Song et al., arXiv 2303.01469, Alg. 3)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from cmcore.config import require
from cmcore.consistency.curriculum import ct_decay, ct_points
from cmcore.consistency.distances import DistanceName, distance, services
from cmcore.consistency.pairs import uniform_pair
from cmcore.diffusion.settings import DiffusionConfig
from cmcore.methods.base import TARGET, Action, Batch, Blend, LossOut, Method, Nets, Network, Progress, Traits
from cmcore.rng import Draws
from cmcore.tensors import expand_like


@dataclass(frozen=True, kw_only=True)
class Config:
    """The paper's constants for CIFAR-10 (Table 3)."""

    s0: int = 2  # grid points at the start
    s1: int = 150  # grid points at the end
    mu0: float = 0.9  # the decay of the EMA target is mu0^(s0/n),
    mu_counts: Literal["gaps", "points"] = "gaps"  # n: N(k) - 1 in both official codes, N(k) in the paper
    distance: DistanceName = "lpips"
    huber_c: float = 0.03  # of pseudo_huber only

    def __post_init__(self) -> None:
        require(self.s0 >= 2, "s0", "at least 2", self.s0)
        require(self.s1 >= self.s0, "s1", f"at least s0 = {self.s0}", self.s1)
        require(0 < self.mu0 < 1, "mu0", "a number in (0, 1)", self.mu0)
        require(self.huber_c > 0, "huber_c", "a positive number", self.huber_c)


@dataclass(frozen=True)
class CT(Method):
    """d(f(x + t_{n+1} z, t_{n+1}), f^-(x + t_n z, t_n)) with the same z, a growing N(k) and an EMA target f^-."""

    config: Config
    diffusion: DiffusionConfig

    @property
    def traits(self) -> Traits:
        """A consistency model with exact boundary."""
        return Traits(boundary=True, services=services(self.config.distance))

    @property
    def networks(self) -> Mapping[str, Network]:
        """The EMA target f^-."""
        return {TARGET: Network(start="student", role="moved")}

    def _points(self, progress: Progress) -> int:
        return ct_points(progress.fraction, self.config.s0, self.config.s1)

    def loss(self, nets: Nets, batch: Batch, progress: Progress, draws: Draws) -> LossOut:
        """lambda = 1, as in the paper."""
        N = self._points(progress)
        t, r = uniform_pair(draws.uniform(stream="level"), N, self.diffusion)
        z = draws.normal(batch.x.shape[1:], stream="noise")
        with torch.no_grad(), draws.dropout():
            target = nets.target(batch.x + expand_like(r, z) * z, r, batch.labels)
        with draws.dropout():
            f = nets.student(batch.x + expand_like(t, z) * z, t, batch.labels)
        loss = distance(self.config.distance, self.config.huber_c)(f, target)
        return LossOut(loss, {"N": float(N), "mu": self._decay(progress)})

    def after(self, progress: Progress) -> Sequence[Action]:
        """The target follows the student with decay mu(k)."""
        return (Blend(TARGET, self._decay(progress)),)

    def _decay(self, progress: Progress) -> float:
        N = self._points(progress)
        return ct_decay(N - 1 if self.config.mu_counts == "gaps" else N, self.config.s0, self.config.mu0)


def build(config: Config, diffusion: DiffusionConfig) -> CT:
    """The method for a noise range."""
    return CT(config, diffusion)
