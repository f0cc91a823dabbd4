"""Continuous-time CT of the paper of 2023 (Song et al., arXiv 2303.01469, App. B.2), which sCT improves on."""

from dataclasses import dataclass
from typing import Literal

from cmcore.consistency import weights
from cmcore.consistency.tangents import total_derivative
from cmcore.diffusion.levels import KarrasUniform
from cmcore.diffusion.settings import DiffusionConfig
from cmcore.methods.base import Batch, LossOut, Method, Nets, Progress, Traits
from cmcore.rng import Draws
from cmcore.tensors import expand_like, norm_per_sample, sum_per_sample


@dataclass(frozen=True, kw_only=True)
class Config:
    """The distance is l2."""

    weighting: Literal["none", "grid"] = "none"  # the limit of CT's grid has its gaps dt/du; the authors' code none


@dataclass(frozen=True)
class CCT(Method):
    """<f(x_t, t), sg df/dt> along dx/dt = z: the limit of CT as the grid becomes fine.

    t is uniform in t^(1/rho). The loss is summed over the pixels, as in the authors' JAX code. The paper starts it from
    a diffusion model; from random weights it diverges.
    """

    config: Config
    diffusion: DiffusionConfig

    @property
    def traits(self) -> Traits:
        """A consistency model with exact boundary, trained from data alone."""
        return Traits(boundary=True)

    def loss(self, nets: Nets, batch: Batch, progress: Progress, draws: Draws) -> LossOut:
        """f and its derivative come from one pass, so they share the dropout mask."""
        del progress  # no curriculum
        d = self.diffusion
        t = KarrasUniform(d.sigma_min, d.sigma_max, d.rho).sample(draws.uniform(stream="level"))
        z = draws.normal(batch.x.shape[1:], stream="noise")
        with draws.dropout():
            f, df_dt = total_derivative(nets.student, batch.x + expand_like(t, z) * z, t, z, batch.labels)
        df_dt = df_dt.detach()
        loss = sum_per_sample(f * df_dt)
        if self.config.weighting == "grid":
            loss = weights.grid_gap(t, d).to(loss.dtype) * loss
        return LossOut(loss, {"derivative_norm": norm_per_sample(df_dt).mean()})


def build(config: Config, diffusion: DiffusionConfig) -> CCT:
    """The method for a noise range."""
    return CCT(config, diffusion)
