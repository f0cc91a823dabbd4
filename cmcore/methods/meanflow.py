"""MeanFlow: the average velocity between two times, learned from its own derivative (Geng et al., arXiv 2505.13447)."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cmcore.config import require
from cmcore.consistency.meanflow import identity_error
from cmcore.consistency.tangents import total_derivative
from cmcore.diffusion.inputs import Input
from cmcore.diffusion.path import Linear
from cmcore.diffusion.precond import with_inputs
from cmcore.diffusion.settings import DiffusionConfig
from cmcore.methods.base import Batch, LossOut, Method, Nets, Progress, Traits
from cmcore.rng import Draws
from cmcore.sample.base import Sampler
from cmcore.sample.flowmap import linear_jumps
from cmcore.sample.settings import Sampling
from cmcore.tensors import expand_like

END = "end"


@dataclass(frozen=True, kw_only=True)
class Config:
    """The authors' improved constants for CIFAR-10 (Gsunshine/py-meanflow, scripts/cifar10_v1.sh)."""

    P_mean: float = -0.6  # of logit t = ln sigma
    P_std: float = 1.6
    end_mean: float = -4.0  # of logit r
    end_std: float = 1.6
    equal: float = 0.25  # share of rows with r = t: plain flow matching
    power: float = 0.75  # of the adaptive weight
    eps: float = 1e-3

    def __post_init__(self) -> None:
        for key in ("P_std", "end_std", "eps"):
            require(getattr(self, key) > 0, key, "a positive number", getattr(self, key))
        require(0 <= self.equal <= 1, "equal", "a share, from 0 to 1", self.equal)
        require(self.power >= 0, "power", "at least 0", self.power)


@dataclass(frozen=True)
class MeanFlow(Method):
    """||u(x_t, t, r) - sg[v - (t - r) du/dt]||^2 over a power of itself, on x_t = (1 - t) x + t z with v = z - x.

    u = (x_t - D)/t with a denoiser D that sees r; the derivative is along v, with r fixed.
    """

    config: Config
    diffusion: DiffusionConfig

    @property
    def traits(self) -> Traits:
        """A few-step model whose network knows where a jump ends."""
        return Traits(inputs=(Input(END, "time"),))

    def levels(self, draws: Draws) -> tuple[Tensor, Tensor]:
        """Levels (B,) of t and of r, from sigma_min on and r at most t.

        Below sigma_min nothing is left to learn, and r = 0 has no coordinate, so that jumps end there.
        """
        cfg, least = self.config, self.diffusion.sigma_min
        sigma = (cfg.P_mean + cfg.P_std * draws.normal(stream="level", dtype=torch.float64)).exp().clamp(min=least)
        end = (cfg.end_mean + cfg.end_std * draws.normal(stream="end", dtype=torch.float64)).exp().clamp(min=least)
        equal = draws.uniform(stream="equal") < cfg.equal
        return sigma, torch.where(equal, sigma, torch.minimum(end, sigma))

    def loss(self, nets: Nets, batch: Batch, progress: Progress, draws: Draws) -> LossOut:
        """u and its derivative come from one pass, so they share the dropout mask. Errors are sums over the pixels."""
        del progress  # no curriculum
        cfg, path = self.config, Linear()
        sigma, end = self.levels(draws)
        t, r = path.time(sigma), path.time(end)
        z = draws.normal(batch.x.shape[1:], stream="noise").to(batch.x.dtype)
        x = batch.x + expand_like(sigma, z) * z
        with draws.dropout():
            D, dD = total_derivative(nets.student, x, sigma, z, with_inputs(batch.labels, **{END: end}))
        error = identity_error(D, dD, batch.x, batch.x, t, r)
        found = error.detach()
        return LossOut(error / (found + cfg.eps) ** cfg.power, {"error": found.mean()})

    def samplers(self, sampling: Sampling) -> list[Sampler]:
        """1, 2 and 4 jumps, of equal length in t."""
        return [self.guided(linear_jumps(n, self.diffusion, END), sampling) for n in (1, 2, 4)]

    def scan(self, sampling: Sampling, levels: Sequence[float]) -> list[Sampler]:
        """None: jumps add no noise whose level could be chosen."""
        return []


def build(config: Config, diffusion: DiffusionConfig) -> MeanFlow:
    """The method for a noise range."""
    return MeanFlow(config, diffusion)
