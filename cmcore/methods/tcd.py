"""TCD: trajectory consistency distillation (Zheng et al., arXiv 2402.19159), from a level to any one below.

Settings that the paper does not state are those of LCM (cmcore/methods/lcm.py).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cmcore.config import require
from cmcore.consistency.distances import DistanceName, distance, services
from cmcore.consistency.distillation import SolverName, taught_pair
from cmcore.consistency.pairs import uniform_below, uniform_pair
from cmcore.diffusion.grids import karras_grid
from cmcore.diffusion.guidance import Scales, check_scales, guidance_inputs
from cmcore.diffusion.inputs import GUIDANCE
from cmcore.diffusion.jumps import SECOND_TIME, Jumps
from cmcore.diffusion.levels import KarrasUniform
from cmcore.diffusion.ode import Denoise
from cmcore.diffusion.precond import Denoiser, Labels, as_condition, with_inputs
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
from cmcore.sample.base import Sampler
from cmcore.sample.gamma import StrategicStochastic
from cmcore.sample.settings import Sampling


@dataclass(frozen=True, kw_only=True)
class Config:
    """The constants for Stable Diffusion, without guidance."""

    N: int = 1000  # grid points
    k: int = 20  # skipping step: grid points from t to r
    solver: SolverName = "euler"  # DDIM, in VE time
    distance: DistanceName = "huber"
    huber_c: float = 0.001  # of both Hubers only
    mu: float = 0.95  # decay of the EMA target; 0 takes the online network itself
    sees_end: bool = True  # the network sees s, the paper's TCF(S+); without, TCF(1), of the public weights
    gamma: float = 0.3  # of the samplers: the share of the time of a step that is new noise
    guidance: Scales | None = None  # range of the teacher's scale, told to the student unless it is a single one

    def __post_init__(self) -> None:
        require(self.N >= 2, "N", "at least 2", self.N)
        require(1 <= self.k < self.N, "k", f"from 1 to N - 1 = {self.N - 1}", self.k)
        require(0 <= self.mu < 1, "mu", "a number in [0, 1)", self.mu)
        require(self.huber_c > 0, "huber_c", "a positive number", self.huber_c)
        require(0 <= self.gamma <= 1, "gamma", "a number in [0, 1]", self.gamma)
        check_scales(self.guidance)


@dataclass(frozen=True, eq=False)
class Untold:
    """A denoiser that is not told where a jump ends."""

    denoiser: Denoise

    def __call__(self, x: Tensor, sigma: Tensor, labels: Labels = None) -> Tensor:
        """D(x, sigma), of the shape of x."""
        condition = as_condition(labels)
        others = {name: value for name, value in condition.inputs.items() if name != SECOND_TIME.name}
        return self.denoiser(x, sigma, condition._replace(inputs=others))


@dataclass(frozen=True)
class TCD(Method):
    """d(f(x_{t_{n+k}}, t_{n+k}, s), sg f(x^_{t_n}, t_n, s)) with any s <= t_n, where a step of the teacher makes x^.

    f(x, t, s) = s/t x + (1 - s/t) D(x, t) is the exponential integrator of order 1 from t to s, in VE coordinates.
    """

    config: Config
    diffusion: DiffusionConfig

    @property
    def traits(self) -> Traits:
        """Maps between levels, taught by a diffusion model."""
        seen = (SECOND_TIME,) if self.config.sees_end else ()
        return Traits(
            teacher="diffusion",
            inputs=(*seen, *guidance_inputs(self.config.guidance, single=False)),
            guidance=self.config.guidance,
            services=services(self.config.distance),
        )

    @property
    def networks(self) -> Mapping[str, Network]:
        """A teacher, and an EMA target unless mu = 0."""
        return {TEACHER: Network(start="teacher"), **moved_target(self.config.mu)}

    def model(self, denoiser: Denoiser) -> Denoise:
        """Jumps, to sigma_min unless a sampler names another level."""
        return Jumps(denoiser if self.config.sees_end else Untold(denoiser), self.diffusion.sigma_min)

    def levels(self, draws: Draws) -> tuple[Tensor, Tensor, Tensor]:
        """The levels (B,) of t, of r and of s, t > r >= s; s is uniform over the points up to r."""
        cfg = self.config
        t, r = uniform_pair(draws.uniform(stream="level"), cfg.N, self.diffusion, cfg.k)
        return t, r, uniform_below(draws.uniform(stream="second"), r, cfg.N, self.diffusion)

    def loss(self, nets: Nets, batch: Batch, progress: Progress, draws: Draws) -> LossOut:
        """lambda = 1."""
        del progress  # the grid is fixed
        cfg = self.config
        t, r, s = self.levels(draws)
        told = GUIDANCE in self.traits.inputs
        x_t, x_r, labels = taught_pair(
            nets.teacher, cfg.solver, batch.x, t, r, batch.labels, cfg.guidance, draws, told=told
        )
        labels = with_inputs(labels, s=s)
        with torch.no_grad(), draws.dropout():
            target = self.model(nets.target if cfg.mu > 0 else nets.student)(x_r, r, labels)
        with draws.dropout():
            f = self.model(nets.student)(x_t, t, labels)
        return LossOut(distance(cfg.distance, cfg.huber_c)(f, target), {})

    def after(self, progress: Progress) -> Sequence[Action]:
        """The target, where there is one, follows the student with constant decay mu."""
        del progress
        return following(self.config.mu)

    def samplers(self, sampling: Sampling) -> list[Sampler]:
        """1, 2 and 4 jumps, the latter evenly spaced on the grid."""
        d = sampling.diffusion
        four = karras_grid(5, d.sigma_min, d.sigma_max, d.rho)[1:-1].tolist()
        return [self._through(sampling, levels) for levels in ((), (sampling.two_step,), four)]

    def scan(self, sampling: Sampling, levels: Sequence[float]) -> list[Sampler]:
        """Two jumps through each of the levels."""
        return [self._through(sampling, (level,)) for level in levels]

    def _through(self, sampling: Sampling, levels: Sequence[float]) -> Sampler:
        d = sampling.diffusion
        times = KarrasUniform(d.sigma_min, d.sigma_max, d.rho)
        sampler = StrategicStochastic((d.sigma_max, *levels), d.sigma_min, self.config.gamma, times=times)
        return self.guided(sampler, sampling)


def build(config: Config, diffusion: DiffusionConfig) -> TCD:
    """The method for a noise range."""
    return TCD(config, diffusion)
