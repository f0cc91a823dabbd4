"""TCM: truncated consistency models (Lee et al., arXiv 2410.14895).

The second of two stages; the first is a run of ECT, which it starts from and which stays its teacher.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch

from cmcore.config import require
from cmcore.consistency import weights
from cmcore.consistency.distances import pseudo_huber
from cmcore.diffusion.levels import TruncatedStudentT
from cmcore.diffusion.settings import DiffusionConfig
from cmcore.methods.base import TEACHER, Batch, LossOut, Method, Nets, Network, Progress, Traits
from cmcore.rng import Draws
from cmcore.sample.base import Sampler
from cmcore.sample.settings import Sampling
from cmcore.tensors import expand_like


@dataclass(frozen=True, kw_only=True)
class Config:
    """The authors' constants for CIFAR-10 (their repository's README)."""

    transition: float = 1.0  # t': the student learns levels from here on, the first stage keeps those below
    df: float = 0.01  # degrees of freedom of ln t, Student-t on [ln t', ln sigma_max]
    scale: float = 0.2
    ratio: float = 0.999  # r/t, where the first stage's curriculum ended
    boundary_share: float = 0.25  # of the rows, at t = t'
    boundary_weight: float = 0.1
    huber_c: float = 1e-8
    weighting: Literal["gap", "edm"] = "gap"  # 1/(t - r) for CIFAR-10, EDM's, which is 1/c_out^2, for ImageNet

    def __post_init__(self) -> None:
        require(self.transition > 0, "transition", "a positive noise level", self.transition)
        require(self.df > 0, "df", "a positive number", self.df)
        require(self.scale > 0, "scale", "a positive number", self.scale)
        require(0 < self.ratio < 1, "ratio", "a number in (0, 1)", self.ratio)
        require(0 < self.boundary_share < 1, "boundary_share", "a share in (0, 1)", self.boundary_share)
        require(self.boundary_weight > 0, "boundary_weight", "a positive number", self.boundary_weight)
        require(self.huber_c > 0, "huber_c", "a positive number", self.huber_c)


@dataclass(frozen=True)
class TCM(Method):
    """w(t, r) PseudoHuber(f(x + t z, t), sg f'(x + r z, r)) for t >= t', where f' is the first stage below t'.

    A share of the rows has t = t', so that r lies below: their targets are the first stage's, which is the boundary of
    the truncated problem. Without them the student may collapse to a constant.
    """

    config: Config
    diffusion: DiffusionConfig
    levels: TruncatedStudentT

    @property
    def traits(self) -> Traits:
        """A consistency model with EDM's plain scalings, taught by another."""
        return Traits(teacher="few_step")

    @property
    def networks(self) -> Mapping[str, Network]:
        """The first stage's model."""
        return {TEACHER: Network(start="teacher")}

    def loss(self, nets: Nets, batch: Batch, progress: Progress, draws: Draws) -> LossOut:
        """Same noise and same weights on both sides; the means over both kinds of rows are added, weighted by w_b."""
        del progress  # no curriculum
        cfg, x = self.config, batch.x
        boundary = self._boundary(draws)
        t = torch.where(boundary, cfg.transition, self.levels.sample(draws.uniform(stream="level")))
        r = cfg.ratio * t
        z = draws.normal(x.shape[1:], stream="noise")
        x_r, below = x + expand_like(r, z) * z, r < cfg.transition
        with torch.no_grad():
            first = nets.teacher(x_r, r, batch.labels)
            with draws.dropout():
                own = nets.student(x_r, r, batch.labels)
            target = torch.where(below.reshape(expand_like(r, z).shape), first, own)
        with draws.dropout():
            f = nets.student(x + expand_like(t, z) * z, t, batch.labels)
        gap = pseudo_huber(f, target, cfg.huber_c)
        weight = weights.inverse_gap(t, r) if cfg.weighting == "gap" else weights.edm(t, self.diffusion.sigma_data)
        # The mean over all rows of these is the sum of the means over both kinds.
        share = torch.where(boundary, cfg.boundary_weight / cfg.boundary_share, 1 / (1 - cfg.boundary_share))
        return LossOut((share * weight).to(gap.dtype) * gap, {"distance": gap.detach().mean()})

    def _boundary(self, draws: Draws) -> torch.Tensor:
        """Which rows are at t': every so many, as images come shuffled; so any part of a batch knows its own."""
        row = torch.arange(draws.batch, device=draws.device)[draws.rows]
        share = self.config.boundary_share
        return ((row + 1) * share).floor() > (row * share).floor()

    def samplers(self, sampling: Sampling) -> list[Sampler]:
        """One and two steps; the second from t' or above, as the student has forgotten what is below."""
        return super().samplers(replace(sampling, two_step=max(sampling.two_step, self.config.transition)))

    def scan(self, sampling: Sampling, levels: Sequence[float]) -> list[Sampler]:
        """Second steps that the student has learned."""
        return super().scan(sampling, [level for level in levels if level >= self.config.transition])


def build(config: Config, diffusion: DiffusionConfig) -> TCM:
    """The method for a noise range; a ConfigError where t' is outside of it."""
    inside = diffusion.sigma_min < config.transition < diffusion.sigma_max
    between = f"between sigma_min = {diffusion.sigma_min} and sigma_max = {diffusion.sigma_max}"
    require(inside, "transition", f"a level {between}", config.transition)
    return TCM(config, diffusion, TruncatedStudentT(config.df, config.scale, config.transition, diffusion.sigma_max))
