"""iMF: improved MeanFlow, a regression to the velocity by a compound function (Geng et al., arXiv 2512.02012).

Settings that the paper does not state are those of the authors' repository, Lyy-iiis/imeanflow.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cmcore.config import require
from cmcore.consistency.guided import check_dropout, no_label, where_labelled
from cmcore.consistency.meanflow import identity_error
from cmcore.consistency.tangents import derivative_precision, total_derivative
from cmcore.diffusion.guidance import Scales, check_scales, drop_labels, guidance_inputs, with_scale
from cmcore.diffusion.jumps import SECOND_TIME
from cmcore.diffusion.path import Linear
from cmcore.diffusion.precond import with_inputs
from cmcore.diffusion.settings import DiffusionConfig
from cmcore.methods.base import Batch, LossOut, Method, Nets, Progress, Traits
from cmcore.rng import Draws
from cmcore.sample.base import Sampler
from cmcore.sample.flowmap import linear_jumps
from cmcore.sample.settings import Sampling
from cmcore.tensors import expand_like


@dataclass(frozen=True, kw_only=True)
class Config:
    """The authors' constants for ImageNet 256, the only data set they publish on, without their guidance.

    With it they have scales from 1 to 8 and a label dropout of 0.1.
    """

    P_mean: float = -0.4  # of logit t = ln sigma, of two draws: the larger is t, the smaller r
    P_std: float = 1.0
    equal: float = 0.5  # share of rows with r = t: plain flow matching
    power: float = 1.0  # of the adaptive weight
    eps: float = 0.01
    guidance: Scales | None = None  # range of the guidance scale, which the network learns; drawn log-uniformly
    label_dropout: float = 0.0  # share of labels left out, which guidance needs

    def __post_init__(self) -> None:
        check_scales(self.guidance)
        least = 1.0 if self.guidance is None else self.guidance[0]
        require(least > 0, "guidance", "null, or scales above 0", self.guidance)
        check_dropout(self.guidance is not None, self.label_dropout)
        for key in ("P_std", "eps"):
            require(getattr(self, key) > 0, key, "a positive number", getattr(self, key))
        require(0 < self.equal <= 1, "equal", "a share above 0, at most 1, of rows that teach the tangent", self.equal)
        require(self.power >= 0, "power", "at least 0", self.power)


@dataclass(frozen=True)
class IMF(Method):
    """||V - (z - x)||^2 over a power of itself, V = u(x_t, t, r) + (t - r) sg[du/dt], x_t = (1 - t) x + t z.

    The derivative is along the network's own velocity u(x_t, t, t), where MeanFlow's is along the sample's, so V is a
    function of x_t alone. Of the paper's two sources of that velocity this is the one without a second head.

    With guidance the network sees the scale w, and v = z - x becomes v + (1 - 1/w) (u(label, w) - u(no label, w)), both
    at (x_t, t, t): the fixed point is the guided velocity at w. Images without a label keep their own. The authors also
    give the network an interval of t outside of which w is 1; here w holds at all t.
    """

    config: Config
    diffusion: DiffusionConfig

    @property
    def traits(self) -> Traits:
        """A few-step model whose network knows where a jump ends."""
        scales = self.config.guidance
        return Traits(
            inputs=(SECOND_TIME, *guidance_inputs(scales)), guidance=scales, unlabelled=self.config.label_dropout > 0
        )

    def levels(self, draws: Draws) -> tuple[Tensor, Tensor]:
        """Levels (B,) of t and of r, from sigma_min on and r at most t."""
        cfg, least = self.config, self.diffusion.sigma_min
        one, other = (
            (cfg.P_mean + cfg.P_std * draws.normal(stream=stream, dtype=torch.float64)).exp().clamp(min=least)
            for stream in ("level", "end")
        )
        sigma, equal = torch.maximum(one, other), draws.uniform(stream="equal") < cfg.equal
        return sigma, torch.where(equal, sigma, torch.minimum(one, other))

    def loss(self, nets: Nets, batch: Batch, progress: Progress, draws: Draws) -> LossOut:
        """All passes share the dropout mask. Errors are sums over the pixels."""
        del progress  # no curriculum
        cfg, path, name = self.config, Linear(), SECOND_TIME.name
        sigma, end = self.levels(draws)
        z = draws.normal(batch.x.shape[1:], stream="noise").to(batch.x.dtype)
        x = batch.x + expand_like(sigma, z) * z
        labels, image = drop_labels(batch.labels, cfg.label_dropout, draws), batch.x
        w = None if cfg.guidance is None else self.scales(cfg.guidance, draws)
        labels = labels if w is None else with_scale(labels, w)
        # Of an image without a label the authors' direction is that of its label all the same.
        with torch.no_grad(), derivative_precision(x.device), draws.dropout():
            D_t = nets.student(x, sigma, with_inputs(labels, **{name: sigma}))
            dx = (x - D_t) / expand_like(sigma, x)
        if w is not None:
            with torch.no_grad(), derivative_precision(x.device), draws.dropout():
                gap = D_t - nets.student(x, sigma, with_inputs(no_label(labels), **{name: sigma}))
            image = where_labelled(labels, image + expand_like(1 - 1 / w, x) * gap, image)
        with draws.dropout():
            D, dD = total_derivative(nets.student, x, sigma, dx, with_inputs(labels, **{name: end}))
        error = identity_error(D, dD, image, D_t, path.time(sigma), path.time(end))
        found = error.detach()
        return LossOut(error / (found + cfg.eps) ** cfg.power, {"error": found.mean()})

    def scales(self, scales: Scales, draws: Draws) -> Tensor:
        """w (B,), float64, with ln w uniform: the authors' power law of exponent 1."""
        low, high = scales
        return low * (high / low) ** draws.uniform(stream="guidance")

    def samplers(self, sampling: Sampling) -> list[Sampler]:
        """1, 2 and 4 jumps, of equal length in t."""
        return [self.guided(linear_jumps(n, self.diffusion, SECOND_TIME.name), sampling) for n in (1, 2, 4)]

    def scan(self, sampling: Sampling, levels: Sequence[float]) -> list[Sampler]:
        """None: jumps add no noise whose level could be chosen."""
        return []


def build(config: Config, diffusion: DiffusionConfig) -> IMF:
    """The method for a noise range."""
    return IMF(config, diffusion)
