"""IMM: inductive moment matching (Zhou et al., arXiv 2503.07565)."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cmcore.config import require
from cmcore.consistency.mmd import squared_mmd
from cmcore.diffusion.guidance import drop_labels
from cmcore.diffusion.jumps import SECOND_TIME, Jumps, jump
from cmcore.diffusion.ode import Denoise
from cmcore.diffusion.path import Linear
from cmcore.diffusion.precond import Denoiser
from cmcore.diffusion.settings import DiffusionConfig
from cmcore.methods.base import Batch, LossOut, Method, Nets, Progress, Traits
from cmcore.rng import Draws
from cmcore.sample.base import Sampler
from cmcore.sample.gamma import GammaSampling
from cmcore.sample.guided import GuidedSampler
from cmcore.sample.settings import Sampling
from cmcore.tensors import expand_like, full_precision


@dataclass(frozen=True, kw_only=True)
class Config:
    """The paper's constants for CIFAR-10, without guidance; on ImageNet 256 the label dropout is 0.1."""

    M: int = 4  # particles of a group
    g: float = 15.0  # r lies 2^-g of the range of levels below t
    a: int = 1  # exponent of alpha in the weight
    b: float = 5.0  # shift of the weight's sigmoid
    label_dropout: float = 0.0  # share of labels left out, so that samplers can guide

    def __post_init__(self) -> None:
        require(self.M >= 1, "M", "at least 1", self.M)
        require(0 < self.g <= 24, "g", "a number in (0, 24], as float32 has 24 bits", self.g)
        require(self.a >= 0, "a", "at least 0", self.a)
        require(0 <= self.label_dropout <= 1, "label_dropout", "a probability, from 0 to 1", self.label_dropout)


@dataclass(frozen=True)
class IMM(Method):
    """w(t) MMD^2(f(x_t, t, s), sg f(x_r, r, s)) over the M particles of a group, which share s <= r < t.

    Levels are those of the linear path with noise of the data's scale: sigma = sigma_data t / (1 - t). In VE time
    the paper's map (simple-EDM) is a jump with EDM's scalings, and its kernel compares particles in units of c_out.
    With classes, a group's particles have the labels of their images. Guidance is a matter of sampling: every jump is
    that of the guided prediction, at two evaluations.
    """

    config: Config
    diffusion: DiffusionConfig

    @property
    def traits(self) -> Traits:
        """Maps between levels, and groups of particles."""
        unlabelled = self.config.label_dropout > 0
        scales = (0.0, math.inf) if unlabelled else None
        return Traits(inputs=(SECOND_TIME,), group=self.config.M, guidance=scales, unlabelled=unlabelled)

    def levels(self, draws: Draws) -> tuple[Tensor, Tensor, Tensor]:
        """sigma at t, r and s (B,), equal within a group: t and s <= t uniform on the linear path."""
        d, sd = self.diffusion, self.diffusion.sigma_data
        lo, hi = Linear().time(torch.tensor([d.sigma_min, d.sigma_max], dtype=torch.float64) / sd).tolist()
        t = lo + (hi - lo) * self._grouped(draws.uniform(stream="level"))
        s = lo + (t - lo) * self._grouped(draws.uniform(stream="second"))
        at_t, at_s = sd * Linear().level(t), sd * Linear().level(s)
        gap = (d.sigma_max - d.sigma_min) * 2**-self.config.g
        return at_t, torch.maximum(at_s, at_t - gap), at_s

    def weight(self, sigma: Tensor) -> Tensor:
        """w(t) = 1/2 sigmoid(b - lambda) (-dlambda/dt) alpha^a / (alpha^2 + t^2), lambda = 2 ln(alpha / t)."""
        t = Linear().time(sigma / self.diffusion.sigma_data)
        alpha, logsnr = 1 - t, 2 * ((1 - t) / t).log()
        slope = 2 / (t * alpha)
        return torch.sigmoid(self.config.b - logsnr) * slope * alpha**self.config.a / (alpha**2 + t**2) / 2

    def loss(self, nets: Nets, batch: Batch, progress: Progress, draws: Draws) -> LossOut:
        """Same images, noise and weights on both sides; every row has the loss of its group."""
        del progress  # no curriculum
        t, r, s = self.levels(draws)
        z = draws.normal(batch.x.shape[1:], stream="noise")
        labels = drop_labels(batch.labels, self.config.label_dropout, draws)
        with torch.no_grad(), draws.dropout():
            target = jump(nets.student, batch.x + expand_like(r, z) * z, r, s, labels)
        with draws.dropout():
            y = jump(nets.student, batch.x + expand_like(t, z) * z, t, s, labels)
        with full_precision(y.device):
            c_out = (1 - s / t) * nets.student.scalings(t).c_out
            first = slice(None, None, self.config.M)
            mmd = squared_mmd(self._particles(y), self._particles(target), (1 / c_out[first]).to(y.dtype))
            loss = self.weight(t[first]).to(y.dtype) * mmd
        return LossOut(loss.repeat_interleave(self.config.M), {"mmd": mmd.detach().mean()})

    def guided(self, sampler: Sampler, sampling: Sampling) -> Sampler:
        """The sampler under the run's guidance, with two evaluations for each of its own; the very same without."""
        return sampler if sampling.guidance == 1 else GuidedSampler(sampler, sampling.guidance)

    def _grouped(self, v: Tensor) -> Tensor:
        """The value of every group's first row for all of its rows."""
        return v[:: self.config.M].repeat_interleave(self.config.M)

    def _particles(self, x: Tensor) -> Tensor:
        """Images (B, C, H, W) as groups (B / M, M, C H W)."""
        return x.reshape(-1, self.config.M, x[0].numel())

    def model(self, denoiser: Denoiser) -> Denoise:
        """Jumps, to sigma_min unless a sampler names another level."""
        return Jumps(denoiser, self.diffusion.sigma_min)

    def samplers(self, sampling: Sampling) -> list[Sampler]:
        """One jump, two, and four through levels equidistant on the linear path: the paper's pushforward sampling."""
        d = sampling.diffusion
        t = Linear().time(torch.tensor([d.sigma_max / d.sigma_data], dtype=torch.float64))
        four = [d.sigma_data * float(Linear().level(t * share)) for share in (0.75, 0.5, 0.25)]
        return [self._through(sampling, levels) for levels in ((), (sampling.two_step,), four)]

    def scan(self, sampling: Sampling, levels: Sequence[float]) -> list[Sampler]:
        """Two jumps through each of the levels."""
        return [self._through(sampling, (level,)) for level in levels]

    def _through(self, sampling: Sampling, levels: Sequence[float]) -> Sampler:
        d = sampling.diffusion
        return self.guided(GammaSampling((d.sigma_max, *levels), d.sigma_min), sampling)


def build(config: Config, diffusion: DiffusionConfig) -> IMM:
    """The method for a noise range."""
    return IMM(config, diffusion)
