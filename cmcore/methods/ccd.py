"""Continuous-time CD of the paper of 2023 (Song et al., arXiv 2303.01469, App. B.1), which sCD improves on."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch

from cmcore.consistency import weights
from cmcore.consistency.tangents import derivative_precision, total_derivative
from cmcore.diffusion import ode
from cmcore.diffusion.levels import KarrasUniform
from cmcore.diffusion.settings import DiffusionConfig
from cmcore.methods.base import TEACHER, Batch, LossOut, Method, Nets, Network, Progress, Traits
from cmcore.rng import Draws
from cmcore.tensors import expand_like, norm_per_sample, sum_per_sample


@dataclass(frozen=True, kw_only=True)
class Config:
    """Which of the paper's two objectives; both with the distance l2."""

    stop_gradient: bool = True  # the pseudo-objective, whose gradient is the limit of CD's; else the norm of df/dt
    weighting: Literal["none", "grid"] = "none"  # the limit of CD's grid has its gaps dt/du; the authors' code none


@dataclass(frozen=True)
class CCD(Method):
    """<f(x_t, t), sg df/dt> along the teacher's ODE, or ||df/dt||: the limits of CD as the grid becomes fine.

    t is uniform in t^(1/rho). The loss is summed over the pixels, as in the authors' JAX code.
    """

    config: Config
    diffusion: DiffusionConfig

    @property
    def traits(self) -> Traits:
        """A consistency model with exact boundary, taught by a diffusion model."""
        return Traits(boundary=True, teacher="diffusion", second_order=not self.config.stop_gradient)

    @property
    def networks(self) -> Mapping[str, Network]:
        """The teacher."""
        return {TEACHER: Network(start="teacher")}

    def loss(self, nets: Nets, batch: Batch, progress: Progress, draws: Draws) -> LossOut:
        """f and its derivative come from one pass, so they share the dropout mask."""
        del progress  # no curriculum
        d = self.diffusion
        t = KarrasUniform(d.sigma_min, d.sigma_max, d.rho).sample(draws.uniform(stream="level"))
        z = draws.normal(batch.x.shape[1:], stream="noise")
        x_t = batch.x + expand_like(t, z) * z
        # In the precision of the derivative: it is its direction.
        with torch.no_grad(), derivative_precision(x_t.device):
            dx_dt = ode.velocity(nets.teacher, x_t, t, batch.labels)
        with draws.dropout():
            f, df_dt = total_derivative(nets.student, x_t, t, dx_dt, batch.labels, graph=not self.config.stop_gradient)
        size = norm_per_sample(df_dt)
        loss = sum_per_sample(f * df_dt.detach()) if self.config.stop_gradient else size
        if self.config.weighting == "grid":
            loss = weights.grid_gap(t, d).to(loss.dtype) * loss
        return LossOut(loss, {"derivative_norm": size.detach().mean()})


def build(config: Config, diffusion: DiffusionConfig) -> CCD:
    """The method for a noise range."""
    return CCD(config, diffusion)
