"""Reflow: a rectified flow of the pairs of noise and image that another flow makes, and its distillation to few steps.

Liu et al., arXiv 2209.03003. Settings that the paper does not state are those of the authors' repository,
gnobitab/RectifiedFlow.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor

from cmcore.config import require
from cmcore.consistency.distances import DistanceName, distance, services
from cmcore.diffusion.grids import karras_grid, linear_grid, with_zero
from cmcore.diffusion.guidance import guided_at
from cmcore.diffusion.ode import Denoise, dpmpp_2s_step, euler_step, heun_step
from cmcore.diffusion.path import Linear
from cmcore.diffusion.precond import Labels
from cmcore.diffusion.settings import DiffusionConfig
from cmcore.methods.base import TEACHER, Batch, LossOut, Method, Nets, Network, Progress, Traits
from cmcore.rng import Draws
from cmcore.sample.base import Sampler
from cmcore.sample.settings import Sampling
from cmcore.sample.solvers import LinearEuler
from cmcore.tensors import expand_like


@dataclass(frozen=True, kw_only=True)
class Config:
    """How the pairs are made, and from which times they are learned."""

    solver: Literal["euler", "heun", "dpmpp_2s"] = "heun"  # of the teacher's ODE, whose last step is Euler's
    nfe: int = 127  # evaluations a pair; the paper's adaptive solver takes about as many
    steps: int = 0  # 0: reflow, from all times; else the distillation of so many Euler steps, from where each starts
    distance: DistanceName = "l2"  # the paper's for reflow; for the distillation of one step it is lpips
    huber_c: float = 0.03  # of pseudo_huber only
    guidance: float = 1.0  # scale of the teacher, which becomes part of the weights (arXiv 2309.06380); 1 for none

    def __post_init__(self) -> None:
        require(self.guidance >= 0, "guidance", "a scale of at least 0", self.guidance)
        require(self.nfe >= 3, "nfe", "at least 3", self.nfe)
        require(self.steps >= 0, "steps", "0 for reflow, or a number of Euler steps", self.steps)
        alike = self.steps == 1 or self.distance == "l2"
        require(alike, "distance", "l2, as another compares images, which one step alone makes", self.distance)
        require(self.huber_c > 0, "huber_c", "a positive number", self.huber_c)


@dataclass(frozen=True)
class Reflow(Method):
    """d(D(x_sigma, sigma), x)/t^2 on the straight line from the noise sigma_max z to the image x of the teacher's ODE.

    With l2 this is rectified flow's ||v - (z - x)||^2; one noise has one image, so the optimum of `steps: 1` is the
    teacher's ODE, and lines that do not cross are straight trajectories. Images are not used, their labels are. A pair
    is made for the step that learns from it, by the address of its noise, so that nothing is stored.
    """

    config: Config
    diffusion: DiffusionConfig

    @property
    def traits(self) -> Traits:
        """A diffusion model, or for distillation a few-step one, taught by a diffusion model."""
        cfg = self.config
        guidance = (cfg.guidance, cfg.guidance) if cfg.guidance != 1 else None
        return Traits(few_step=cfg.steps > 0, teacher="diffusion", guidance=guidance, services=services(cfg.distance))

    @property
    def networks(self) -> Mapping[str, Network]:
        """The flow whose pairs are learned."""
        return {TEACHER: Network(start="teacher")}

    def times(self, draws: Draws) -> Tensor:
        """Times t (B,) of the linear path: uniform on the noise range, or uniform among the starts of the steps."""
        cfg, u = self.config, draws.uniform(stream="level")
        first, last = (sigma / (1 + sigma) for sigma in (self.diffusion.sigma_min, self.diffusion.sigma_max))
        return last * (1 - (u * cfg.steps).floor() / cfg.steps) if cfg.steps else first + (last - first) * u

    @torch.no_grad()
    def pairs(self, teacher: Denoise, z: Tensor, labels: Labels) -> Tensor:
        """The images (B, C, H, W) where the teacher's ODE ends from the noise sigma_max z."""
        step = {"euler": euler_step, "heun": heun_step, "dpmpp_2s": dpmpp_2s_step}[self.config.solver]
        levels = _levels(self.config.solver, self.config.nfe, self.diffusion, z.device)[:, None].expand(-1, len(z))
        x = self.diffusion.sigma_max * z.double()
        for sigma, after in pairwise(levels[:-1]):
            x = step(teacher, x, sigma, after, labels)
        return euler_step(teacher, x, levels[-2], levels[-1], labels).to(z.dtype)

    def loss(self, nets: Nets, batch: Batch, progress: Progress, draws: Draws) -> LossOut:
        """The line passes through both ends: its point at sigma is x + sigma/sigma_max (sigma_max z - x)."""
        del progress  # no curriculum
        t = self.times(draws)
        sigma, z = Linear().level(t), draws.normal(batch.x.shape[1:], stream="noise").to(batch.x.dtype)
        x = self.pairs(guided_at(nets.teacher, self.config.guidance), z, batch.labels)
        at = x + expand_like(sigma, x) * (z - x / self.diffusion.sigma_max)
        with draws.dropout():
            D = nets.student(at, sigma, batch.labels)
        error = distance(self.config.distance, self.config.huber_c)(D, x)
        return LossOut(error / (t**2).to(error.dtype), {"distance": error.detach().mean()})

    def samplers(self, sampling: Sampling) -> list[Sampler]:
        """The solvers of a diffusion model, or the Euler steps that were distilled."""
        if not self.config.steps:
            return super().samplers(sampling)
        return [self.guided(LinearEuler(linear_grid(self.config.steps, 0.0, self.diffusion.sigma_max)), sampling)]

    def scan(self, sampling: Sampling, levels: Sequence[float]) -> list[Sampler]:
        """None: no noise is added, so that there is no level to choose."""
        return []


@lru_cache(maxsize=4)
def _levels(solver: str, nfe: int, diffusion: DiffusionConfig, device: torch.device) -> Tensor:
    """Karras's grid, then 0, with as many steps as `nfe` evaluations allow."""
    d, steps = diffusion, nfe if solver == "euler" else (nfe + 1) // 2
    return with_zero(karras_grid(steps, d.sigma_min, d.sigma_max, d.rho)).to(device)


def build(config: Config, diffusion: DiffusionConfig) -> Reflow:
    """The method for a noise range."""
    return Reflow(config, diffusion)
