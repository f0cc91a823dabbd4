"""SoFlow: the map between two times, learned from a nearby time without a derivative (arXiv 2512.15657).

Settings that the paper does not state are those of the authors' repository, zlab-princeton/SoFlow.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cmcore.config import require
from cmcore.consistency.guided import check_dropout, guided_image, where_labelled
from cmcore.diffusion.guidance import drop_labels
from cmcore.diffusion.jumps import SECOND_TIME, Jumps
from cmcore.diffusion.ode import Denoise
from cmcore.diffusion.path import Linear
from cmcore.diffusion.precond import Denoiser, Labels, with_inputs
from cmcore.diffusion.settings import DiffusionConfig
from cmcore.methods.base import Batch, LossOut, Method, Nets, Progress, Traits
from cmcore.rng import Draws
from cmcore.sample.base import Sampler
from cmcore.sample.gamma import GammaSampling
from cmcore.sample.settings import Sampling
from cmcore.tensors import expand_like, mean_per_sample

LEAST_GAP = 1e-4  # of t over l, in the time of the linear path


@dataclass(frozen=True, kw_only=True)
class Config:
    """The authors' constants for CIFAR-10, without guidance.

    On ImageNet 256 they have guidance 3, mix 0.25, fade 0.8 and a label dropout of 0.1.
    """

    P_mean: float = -0.9  # of logit t = ln sigma
    P_std: float = 1.6
    end_mean: float = -4.0  # of logit s
    end_std: float = 1.6
    equal: float = 0.0  # share of rows with s = t: plain flow matching
    first_gap: float = 1.0  # (t - l)/(t - s) at the start of the run,
    last_gap: float = 3.125e-4  # at its end, exponential between
    power: float = 0.75  # of the adaptive weight
    eps: float = 1e-3
    guidance: float = 1.0  # scale, which becomes part of the weights; 1 for none
    mix: float = 1.0  # share of the sample's guided velocity, beside the network's own under the label
    fade: float = 1.0  # time t from which on guidance fades until it is none at t = 1
    label_dropout: float = 0.0  # share of labels left out, which guidance needs

    def __post_init__(self) -> None:
        require(self.guidance >= 1, "guidance", "a scale of at least 1", self.guidance)
        require(0 < self.mix <= 1, "mix", "a share in (0, 1]", self.mix)
        require(0 < self.fade <= 1, "fade", "a time in (0, 1]", self.fade)
        check_dropout(self.guidance != 1, self.label_dropout)
        taught = self.guidance == 1 or self.equal > 0
        require(taught, "equal", "above 0, as guidance needs rows with s = t", self.equal)
        for key in ("P_std", "end_std", "eps"):
            require(getattr(self, key) > 0, key, "a positive number", getattr(self, key))
        require(0 <= self.equal <= 1, "equal", "a share, from 0 to 1", self.equal)
        require(0 < self.first_gap <= 1, "first_gap", "a share in (0, 1]", self.first_gap)
        require(0 < self.last_gap <= self.first_gap, "last_gap", "a share in (0, first_gap]", self.last_gap)
        require(self.power >= 0, "power", "at least 0", self.power)


@dataclass(frozen=True)
class SoFlow(Method):
    """The gradient of -w(Q) <u(x_t, t, s), Q>/d, Q = (f(x_t, t, s) - f(x_l, l, s))/(t - l), with t > l >= s.

    f(x_t, t, s) = x_t - (t - s) u on the linear path, u = (x_t - D)/t with a denoiser D that sees s; x_l has the same
    image and noise as x_t, and d is the number of pixels. Q and its weight w = (mean Q^2 + eps)^-power are constants.
    As l moves from s to t, the target moves from the image itself to MeanFlow's.

    With guidance the line through x_t leads to another image: its velocity is mix (v + (guidance - 1)(v - u(x_t, t, t;
    no label))) + (1 - mix) u(x_t, t, t; label), of which the fixed point is the guided velocity for any mix. Images
    without a label keep their own.
    """

    config: Config
    diffusion: DiffusionConfig

    @property
    def traits(self) -> Traits:
        """Maps between levels."""
        s = self.config.guidance
        guidance = (s, s) if s != 1 else None
        return Traits(inputs=(SECOND_TIME,), guidance=guidance, unlabelled=self.config.label_dropout > 0)

    def gap(self, progress: Progress) -> float:
        """(t - l)/(t - s)."""
        cfg = self.config
        return cfg.first_gap * (cfg.last_gap / cfg.first_gap) ** progress.fraction

    def times(self, progress: Progress, draws: Draws) -> tuple[Tensor, Tensor, Tensor]:
        """t, l and s (B,), float64, from the time of sigma_min on; all three are equal in rows of flow matching."""
        cfg, path = self.config, Linear()
        first = self.diffusion.sigma_min / (1 + self.diffusion.sigma_min)
        sigma = (cfg.P_mean + cfg.P_std * draws.normal(stream="level", dtype=torch.float64)).exp()
        end = (cfg.end_mean + cfg.end_std * draws.normal(stream="end", dtype=torch.float64)).exp()
        t = path.time(sigma).clamp(min=first)
        s = torch.minimum(path.time(end).clamp(min=first), t - LEAST_GAP)
        l = torch.minimum(t - self.gap(progress) * (t - s), t - LEAST_GAP)
        equal = draws.uniform(stream="equal") < cfg.equal
        return t, torch.where(equal, t, l), torch.where(equal, t, s)

    def loss(self, nets: Nets, batch: Batch, progress: Progress, draws: Draws) -> LossOut:
        """Q without a difference of large numbers: ((t - s)/t (D_t - D_l)/(t - l) + s/(t l) (D_l - x))."""
        t, l, s = self.times(progress, draws)
        path, z = Linear(), draws.normal(batch.x.shape[1:], stream="noise").to(batch.x.dtype)
        image, plain = batch.x, drop_labels(batch.labels, self.config.label_dropout, draws)
        if self.config.guidance != 1:
            with torch.no_grad():
                x, sigma = image + expand_like(path.level(t), z) * z, path.level(t)
                image = where_labelled(plain, self._image(nets, x, t, batch, draws), image)
                z = (x - image) / expand_like(sigma, x)
        labels = with_inputs(plain, **{SECOND_TIME.name: path.level(s)})

        def denoised(time: Tensor) -> Tensor:
            sigma = path.level(time)
            with draws.dropout():
                return nets.student(image + expand_like(sigma, z) * z, sigma, labels)

        D = denoised(t)
        with torch.no_grad():
            D_l = denoised(l)
            # Rows of equal times have (D - x)/t, the difference of the two velocities.
            slope = torch.where(l < t, (t - s) / (t * (t - l)), 0)
            Q = expand_like(slope, D) * (D - D_l) + expand_like(s / (t * l), D) * (D_l - image)
            error = mean_per_sample(Q**2)
            target = Q / expand_like((error + self.config.eps) ** self.config.power, Q)
        loss = mean_per_sample(D * target) / t.to(D.dtype)
        return LossOut(loss, {"error": error.mean(), "gap": self.gap(progress)})

    def _image(self, nets: Nets, x: Tensor, t: Tensor, batch: Batch, draws: Draws) -> Tensor:
        """The image (B, C, H, W) to which the guided velocity of a sample leads; x is the VE point at time t (B,)."""

        def denoised(x: Tensor, sigma: Tensor, labels: Labels) -> Tensor:
            with draws.dropout():
                return nets.student(x, sigma, with_inputs(labels, **{SECOND_TIME.name: sigma}))

        cfg = self.config
        b = -cfg.mix * (cfg.guidance - 1) * self.strength(t)
        return guided_image(denoised, x, Linear().level(t), batch.x, batch.labels, unlabelled=b, labelled=1 - cfg.mix)

    def strength(self, t: Tensor) -> Tensor:
        """The share of guidance - 1 at times (B,): 1 until `fade`, from there smoothly to 0."""
        left = ((1 - t) / (1 - self.config.fade if self.config.fade < 1 else 1)).clamp(max=1 - 1e-6)
        return torch.where(t <= self.config.fade, 1.0, -torch.expm1(-0.025 * left / (1 - left)))

    def model(self, denoiser: Denoiser) -> Denoise:
        """Jumps, to sigma_min unless a sampler names another level."""
        return Jumps(denoiser, self.diffusion.sigma_min)

    def samplers(self, sampling: Sampling) -> list[Sampler]:
        """One, two and four jumps to the end, each after the first from a lower time, equidistant, with new noise."""
        d, path = sampling.diffusion, Linear()
        way = path.time(torch.tensor([d.sigma_max], dtype=torch.float64))
        grids = [[float(path.level(way * (1 - i / n))) for i in range(1, n)] for n in (1, 2, 4)]
        return [self._through(sampling, levels) for levels in grids]

    def scan(self, sampling: Sampling, levels: Sequence[float]) -> list[Sampler]:
        """Two jumps, the second from each of the levels."""
        return [self._through(sampling, (level,)) for level in levels]

    def _through(self, sampling: Sampling, levels: Sequence[float]) -> Sampler:
        d = sampling.diffusion
        return self.guided(GammaSampling((d.sigma_max, *levels), d.sigma_min, gamma=1.0), sampling)


def build(config: Config, diffusion: DiffusionConfig) -> SoFlow:
    """The method for a noise range."""
    return SoFlow(config, diffusion)
