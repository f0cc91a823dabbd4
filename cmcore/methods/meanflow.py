"""MeanFlow: the average velocity between two times, learned from its own derivative (Geng et al., arXiv 2505.13447)."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cmcore.config import require
from cmcore.consistency.guided import check_dropout, guided_image, where_labelled
from cmcore.consistency.meanflow import identity_error
from cmcore.consistency.tangents import derivative_precision, total_derivative
from cmcore.diffusion.guidance import drop_labels
from cmcore.diffusion.inputs import Input
from cmcore.diffusion.path import Linear
from cmcore.diffusion.precond import Labels, with_inputs
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
    """The authors' improved constants for CIFAR-10 (Gsunshine/py-meanflow, scripts/cifar10_v1.sh), without guidance.

    On ImageNet 256 the authors have omega 1, kappa 0.5 and a label dropout of 0.1 (Gsunshine/meanflow).
    """

    P_mean: float = -0.6  # of logit t = ln sigma
    P_std: float = 1.6
    end_mean: float = -4.0  # of logit r
    end_std: float = 1.6
    equal: float = 0.25  # share of rows with r = t: plain flow matching
    power: float = 0.75  # of the adaptive weight
    eps: float = 1e-3
    omega: float = 1.0  # weight of the sample's velocity in the guided one,
    kappa: float = 0.0  # of the network's own under the label: the guidance scale is omega/(1 - kappa)
    label_dropout: float = 0.0  # share of labels left out, which guidance needs

    def __post_init__(self) -> None:
        for key in ("P_std", "end_std", "eps", "omega"):
            require(getattr(self, key) > 0, key, "a positive number", getattr(self, key))
        require(0 <= self.equal <= 1, "equal", "a share, from 0 to 1", self.equal)
        require(self.power >= 0, "power", "at least 0", self.power)
        require(0 <= self.kappa < 1, "kappa", "a number in [0, 1)", self.kappa)
        check_dropout(self.guided, self.label_dropout)
        require(not self.guided or self.equal > 0, "equal", "above 0, as guidance needs rows with r = t", self.equal)

    @property
    def guided(self) -> bool:
        """Whether the velocity is guided."""
        return (self.omega, self.kappa) != (1.0, 0.0)

    @property
    def scale(self) -> float:
        """The guidance scale that the network learns."""
        return self.omega / (1 - self.kappa)


@dataclass(frozen=True)
class MeanFlow(Method):
    """||u(x_t, t, r) - sg[v - (t - r) du/dt]||^2 over a power of itself, on x_t = (1 - t) x + t z with v = z - x.

    u = (x_t - D)/t with a denoiser D that sees r; the derivative is along v, with r fixed. With guidance v is
    omega v + (1 - omega - kappa) u(x_t, t, t; no label) + kappa u(x_t, t, t; label) (sec. 4.2 and appendix), and the
    fixed point is the guided velocity at the scale omega/(1 - kappa); images without a label keep their own.
    """

    config: Config
    diffusion: DiffusionConfig

    @property
    def traits(self) -> Traits:
        """A few-step model whose network knows where a jump ends."""
        cfg = self.config
        guidance = (cfg.scale, cfg.scale) if cfg.guided else None
        return Traits(inputs=(Input(END, "time"),), guidance=guidance, unlabelled=cfg.label_dropout > 0)

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
        labels, image, dx = drop_labels(batch.labels, cfg.label_dropout, draws), batch.x, z
        if cfg.guided:
            with torch.no_grad(), derivative_precision(x.device):
                image = where_labelled(labels, self._image(nets, x, sigma, batch, draws), batch.x)
                dx = (x - image) / expand_like(sigma, x)
        with draws.dropout():
            D, dD = total_derivative(nets.student, x, sigma, dx, with_inputs(labels, **{END: end}))
        error = identity_error(D, dD, image, image, t, r)
        found = error.detach()
        return LossOut(error / (found + cfg.eps) ** cfg.power, {"error": found.mean()})

    def _image(self, nets: Nets, x: Tensor, sigma: Tensor, batch: Batch, draws: Draws) -> Tensor:
        """The image (B, C, H, W) to which the guided velocity of a sample at x leads; all passes share the mask."""

        def denoised(x: Tensor, sigma: Tensor, labels: Labels) -> Tensor:
            with draws.dropout():
                return nets.student(x, sigma, with_inputs(labels, **{END: sigma}))

        cfg = self.config
        return guided_image(
            denoised, x, sigma, batch.x, batch.labels, unlabelled=1 - cfg.omega - cfg.kappa, labelled=cfg.kappa
        )

    def samplers(self, sampling: Sampling) -> list[Sampler]:
        """1, 2 and 4 jumps, of equal length in t."""
        return [self.guided(linear_jumps(n, self.diffusion, END), sampling) for n in (1, 2, 4)]

    def scan(self, sampling: Sampling, levels: Sequence[float]) -> list[Sampler]:
        """None: jumps add no noise whose level could be chosen."""
        return []


def build(config: Config, diffusion: DiffusionConfig) -> MeanFlow:
    """The method for a noise range."""
    return MeanFlow(config, diffusion)
