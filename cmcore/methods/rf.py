"""Rectified flow: a model of the velocity on straight paths from data to noise (Liu et al., arXiv 2209.03003)."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from cmcore.config import require
from cmcore.diffusion.guidance import drop_labels
from cmcore.diffusion.path import Linear
from cmcore.diffusion.settings import DiffusionConfig
from cmcore.methods.base import Batch, LossOut, Method, Nets, Progress, Traits
from cmcore.rng import Draws
from cmcore.tensors import expand_like, mean_per_sample


@dataclass(frozen=True, kw_only=True)
class Config:
    """Times t of the linear path, from 0 at the data to 1 at the noise: uniform (Eq. 1), or logit-normal (SD3)."""

    times: Literal["uniform", "logit_normal"] = "uniform"
    P_mean: float = 0.0  # of logit t = ln sigma (arXiv 2403.03206, sec. 3.1 and 5.1)
    P_std: float = 1.0
    label_dropout: float = 0.0  # share of labels left out, so that the model can be guided (arXiv 2207.12598)

    def __post_init__(self) -> None:
        require(self.P_std > 0, "P_std", "a positive number", self.P_std)
        require(0 <= self.label_dropout <= 1, "label_dropout", "a probability, from 0 to 1", self.label_dropout)


@dataclass(frozen=True)
class RF(Method):
    """||v(x_t, t) - (z - x)||^2 on x_t = (1 - t) x + t z, averaged over the pixels.

    The velocity is v = (x_t - D)/t with the denoiser D at the same point in VE time, so the loss is ||D - x||^2/t^2.
    """

    config: Config
    diffusion: DiffusionConfig

    @property
    def traits(self) -> Traits:
        """A diffusion model, which can be guided where it has seen images without labels."""
        return Traits(few_step=False, unlabelled=self.config.label_dropout > 0)

    def times(self, draws: Draws) -> Tensor:
        """Times t (B,): all of them, or the uniform ones within the noise range."""
        cfg, path = self.config, Linear()
        if cfg.times == "logit_normal":
            return path.time((cfg.P_mean + cfg.P_std * draws.normal(stream="level", dtype=torch.float64)).exp())
        ends = torch.tensor([self.diffusion.sigma_min, self.diffusion.sigma_max], dtype=torch.float64)
        first, last = path.time(ends).tolist()
        return first + (last - first) * draws.uniform(stream="level")

    def loss(self, nets: Nets, batch: Batch, progress: Progress, draws: Draws) -> LossOut:
        """Equation 1 of the paper, by the denoiser."""
        del progress  # no curriculum
        t = self.times(draws)
        sigma = Linear().level(t)
        z = draws.normal(batch.x.shape[1:], stream="noise")
        labels = drop_labels(batch.labels, self.config.label_dropout, draws)
        with draws.dropout():
            D = nets.student(batch.x + expand_like(sigma, z) * z, sigma, labels)
        error = mean_per_sample((D - batch.x) ** 2)
        return LossOut(error / (t**2).to(error.dtype), {"denoising_error": error.detach().mean()})


def build(config: Config, diffusion: DiffusionConfig) -> RF:
    """The method for a noise range."""
    return RF(config, diffusion)
