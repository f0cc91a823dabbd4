"""SiD: score identity distillation (Zhou et al., arXiv 2404.04057).

Settings that the paper does not state are those of the authors' repository, mingyuanzhou/SiD.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cmcore.config import require
from cmcore.consistency import weights
from cmcore.diffusion.guidance import guided_at
from cmcore.diffusion.levels import KarrasUniform
from cmcore.diffusion.settings import DiffusionConfig
from cmcore.methods.base import STUDENT, TEACHER, Batch, LossOut, Method, Nets, Network, Progress, Traits
from cmcore.rng import Draws
from cmcore.sample.base import Sampler
from cmcore.sample.fewstep import Multistep
from cmcore.sample.settings import Sampling
from cmcore.tensors import expand_like, mean_per_sample

FAKE = "fake"


@dataclass(frozen=True, kw_only=True)
class Config:
    """The authors' constants for CIFAR-10."""

    alpha: float = 1.2
    sigma_init: float = 2.5  # the generator's noise level
    highest: float = 0.8  # the generator's loss has this share of the Karras warp, from sigma_min on
    P_mean: float = -1.2  # lognormal levels of the fake model
    P_std: float = 1.2
    turns: int = 1  # of the fake model for each of the generator
    guidance: float = 1.0  # scale of the teacher, which becomes part of the weights (arXiv 2406.01561); 1 for none

    def __post_init__(self) -> None:
        require(self.guidance >= 0, "guidance", "a scale of at least 0", self.guidance)
        require(self.alpha >= 0, "alpha", "at least 0", self.alpha)
        require(self.sigma_init > 0, "sigma_init", "a positive noise level", self.sigma_init)
        require(0 < self.highest <= 1, "highest", "a share in (0, 1]", self.highest)
        require(self.P_std > 0, "P_std", "a positive number", self.P_std)
        require(self.turns >= 1, "turns", "at least 1", self.turns)


@dataclass(frozen=True)
class SiD(Method):
    """A one-step generator x_g = D(sigma_init n, sigma_init) descends the Fisher divergence to the teacher.

    The fake model is a denoiser of generated images that trains along, first in every step. No image is used.
    """

    config: Config
    diffusion: DiffusionConfig

    def __post_init__(self) -> None:
        d = self.diffusion
        levels = f"above diffusion.sigma_min = {d.sigma_min} and at most diffusion.sigma_max = {d.sigma_max}"
        require(d.sigma_min < self.config.sigma_init <= d.sigma_max, "sigma_init", levels, self.config.sigma_init)

    @property
    def traits(self) -> Traits:
        """A one-step generator, taught by a diffusion model."""
        s = self.config.guidance
        return Traits(teacher="diffusion", guidance=(s, s) if s != 1 else None)

    @property
    def networks(self) -> Mapping[str, Network]:
        """The teacher, and the fake model, which starts as it."""
        return {TEACHER: Network(start="teacher"), FAKE: Network(start="teacher", role="trained", player=FAKE)}

    def turns(self, progress: Progress) -> Sequence[str]:
        """The fake model first, as in the authors' code."""
        del progress
        return (*[FAKE] * self.config.turns, STUDENT)

    def loss_of(self, player: str, nets: Nets, batch: Batch, progress: Progress, draws: Draws) -> LossOut:
        """The student's loss, or the fake model's."""
        return (self.loss if player == STUDENT else self.fake_loss)(nets, batch, progress, draws)

    def loss(self, nets: Nets, batch: Batch, progress: Progress, draws: Draws) -> LossOut:
        """(D_teacher - D_fake) . ((D_teacher - x_g) - alpha (D_teacher - D_fake)) / sg |x_g - D_teacher|_1.

        Gradients pass through x_g and through the inputs of both models (Eq. 23 and 24). It is 0 at the optimum, and
        negative elsewhere for an exact fake model and alpha > 1: not to be stopped by.
        """
        del progress  # no curriculum
        with draws.dropout():
            x_g = self.generated(nets, batch, draws)
        d = self.diffusion
        sigma = KarrasUniform(d.sigma_min, d.sigma_max, d.rho).sample(
            self.config.highest * draws.uniform(stream="level")
        )
        x = x_g + expand_like(sigma, x_g) * draws.normal(x_g.shape[1:], stream="noise")
        with draws.dropout():
            fake = nets[FAKE](x, sigma, batch.labels)
        real = guided_at(nets.teacher, self.config.guidance)(x, sigma, batch.labels)
        gap = real - fake
        scale = mean_per_sample((x_g - real).abs()).detach()
        # A mean over pixels, where the authors have a sum times 100; Adam sees no constant factor.
        loss = mean_per_sample(gap * (real - x_g - self.config.alpha * gap)) / scale.clamp(min=1e-5)
        return LossOut(loss, {"gap": mean_per_sample(gap.detach().abs()).mean(), "scale": scale.mean()})

    def fake_loss(self, nets: Nets, batch: Batch, progress: Progress, draws: Draws) -> LossOut:
        """EDM's loss of generated images, which here are not distorted as the authors' are."""
        del progress  # no curriculum
        cfg = self.config
        with torch.no_grad(), draws.dropout():
            x_g = self.generated(nets, batch, draws)
        sigma = (cfg.P_mean + cfg.P_std * draws.normal(stream="level", dtype=torch.float64)).exp()
        x = x_g + expand_like(sigma, x_g) * draws.normal(x_g.shape[1:], stream="noise")
        with draws.dropout():
            D = nets[FAKE](x, sigma, batch.labels)
        error = mean_per_sample((D - x_g) ** 2)
        weight = weights.edm(sigma, self.diffusion.sigma_data).to(error.dtype)
        return LossOut(weight * error, {"denoising_error": error.detach().mean()})

    def generated(self, nets: Nets, batch: Batch, draws: Draws) -> Tensor:
        """Images from pure noise, with the labels of the batch."""
        sigma_init = self.config.sigma_init
        sigma = torch.full((len(batch.x),), sigma_init, dtype=torch.float64, device=batch.x.device)
        return nets.student(sigma_init * draws.normal(batch.x.shape[1:], stream="latent"), sigma, batch.labels)

    def samplers(self, sampling: Sampling) -> list[Sampler]:
        """One step: the generator knows no other level."""
        return [self.guided(Multistep((self.config.sigma_init,), sampling.diffusion.sigma_min), sampling)]

    def scan(self, sampling: Sampling, levels: Sequence[float]) -> list[Sampler]:
        """None, as there is no second step."""
        del sampling, levels
        return []


def build(config: Config, diffusion: DiffusionConfig) -> SiD:
    """The method for a noise range."""
    return SiD(config, diffusion)
