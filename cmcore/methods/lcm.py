"""LCM: latent consistency models, distilled from a guided teacher on a fine grid (Luo et al., arXiv 2310.04378).

Settings that the paper does not state are those of the training scripts of Hugging Face's diffusers.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from cmcore.config import require
from cmcore.consistency.distances import DistanceName, distance, services
from cmcore.consistency.distillation import SolverName, taught_pair
from cmcore.consistency.pairs import uniform_pair
from cmcore.diffusion.grids import karras_grid
from cmcore.diffusion.guidance import Scales, check_scales, guidance_inputs
from cmcore.diffusion.levels import KarrasUniform
from cmcore.diffusion.ode import Denoise
from cmcore.diffusion.precond import Denoiser, Labels
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
from cmcore.sample.presets import few_step_sampler
from cmcore.sample.settings import Sampling
from cmcore.tensors import expand_like

SIGMA_DATA = 0.5  # of the scalings, in units of a scaled timestep


@dataclass(frozen=True, kw_only=True)
class Config:
    """The constants for Stable Diffusion, without guidance.

    The authors train with w in [2, 14], which are scales from 3 to 15, an EMA decay of 0.999943 and 100,000 iterations.
    """

    N: int = 1000  # grid points
    k: int = 20  # skipping step: grid points from t to r
    solver: SolverName = "euler"  # DDIM, in VE time
    distance: DistanceName = "huber"
    huber_c: float = 0.001  # of both Hubers only
    mu: float = 0.95  # decay of the EMA target; 0 takes the online network itself, as LCM-LoRA does
    scalings: Literal["lcm", "cm"] = "lcm"  # LCM's in the number of the grid point, or CM's eps-shifted ones
    timestep_scaling: float = 10.0  # of LCM's scalings
    guidance: Scales | None = None  # range of the teacher's scale, told to the student unless it is a single one

    def __post_init__(self) -> None:
        require(self.N >= 2, "N", "at least 2", self.N)
        require(1 <= self.k < self.N, "k", f"from 1 to N - 1 = {self.N - 1}", self.k)
        require(0 <= self.mu < 1, "mu", "a number in [0, 1)", self.mu)
        require(self.huber_c > 0, "huber_c", "a positive number", self.huber_c)
        require(self.timestep_scaling > 0, "timestep_scaling", "a positive number", self.timestep_scaling)
        check_scales(self.guidance)


@dataclass(frozen=True, eq=False)
class ConsistencyFunction:
    """f(x, t) = c_skip x + c_out D(x, t) with c_skip = sd^2/((s n)^2 + sd^2) and c_out = s n/sqrt((s n)^2 + sd^2).

    n is the timestep of t, 0 at sigma_min, where f is the identity, and s the timestep scaling. From the first grid
    points on f is the denoiser to many digits. LCM's x is scaled by alpha_t, which counts where c_skip is 0 alone.

    Args:
        denoiser: D.
        timestep: levels (B,) -> n (B,).
        scaling: s.
    """

    denoiser: Denoise
    timestep: Callable[[Tensor], Tensor]
    scaling: float

    def __call__(self, x: Tensor, sigma: Tensor, labels: Labels = None) -> Tensor:
        """The image (B, C, H, W) of the state x at sigma (B,)."""
        n = self.scaling * self.timestep(sigma)
        total = n**2 + SIGMA_DATA**2
        c_skip, c_out = SIGMA_DATA**2 / total, n / total.sqrt()
        return expand_like(c_skip, x) * x + expand_like(c_out, x) * self.denoiser(x, sigma, labels)


@dataclass(frozen=True)
class LCM(Method):
    """d(f(x_{t_{n+k}}, t_{n+k}), sg f(x^_{t_n}, t_n)), where a step of the guided teacher's ODE makes x^.

    The grid is the Karras grid of the noise range; that of Stable Diffusion has N = 1000, too.
    """

    config: Config
    diffusion: DiffusionConfig

    @property
    def traits(self) -> Traits:
        """A consistency model, whose boundary LCM's scalings make outside of the network."""
        return Traits(
            boundary=self.config.scalings == "cm",
            teacher="diffusion",
            inputs=guidance_inputs(self.config.guidance, single=False),
            guidance=self.config.guidance,
            services=services(self.config.distance),
        )

    @property
    def networks(self) -> Mapping[str, Network]:
        """A teacher, and an EMA target unless mu = 0."""
        return {TEACHER: Network(start="teacher"), **moved_target(self.config.mu)}

    def timestep(self, sigma: Tensor) -> Tensor:
        """The number of the grid point, from 0 at sigma_min on, and between them those between."""
        d = self.diffusion
        n = (self.config.N - 1) * KarrasUniform(d.sigma_min, d.sigma_max, d.rho).cdf(sigma)
        return torch.where(sigma > d.sigma_min, n, 0)

    def model(self, denoiser: Denoiser) -> Denoise:
        """The consistency function."""
        if self.config.scalings == "cm":
            return denoiser
        return ConsistencyFunction(denoiser, self.timestep, self.config.timestep_scaling)

    def loss(self, nets: Nets, batch: Batch, progress: Progress, draws: Draws) -> LossOut:
        """lambda = 1."""
        del progress  # the grid is fixed
        cfg = self.config
        t, r = uniform_pair(draws.uniform(stream="level"), cfg.N, self.diffusion, cfg.k)
        told = bool(self.traits.inputs)
        x_t, x_r, labels = taught_pair(
            nets.teacher, cfg.solver, batch.x, t, r, batch.labels, cfg.guidance, draws, told=told
        )
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
        """1, 2 and 4 steps, the latter from levels that are evenly spaced on the grid."""
        d = sampling.diffusion
        four = karras_grid(5, d.sigma_min, d.sigma_max, d.rho)[1:-1].tolist()
        return [self.guided(few_step_sampler(d, *levels), sampling) for levels in ((), (sampling.two_step,), four)]


def build(config: Config, diffusion: DiffusionConfig) -> LCM:
    """The method for a noise range."""
    return LCM(config, diffusion)
