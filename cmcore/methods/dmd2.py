"""DMD2: improved distribution matching distillation (Yin et al., arXiv 2405.14867); its GAN is an option."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import softplus

from cmcore.config import require
from cmcore.consistency import weights
from cmcore.diffusion.grids import karras_grid
from cmcore.diffusion.guidance import guided_at
from cmcore.diffusion.settings import DiffusionConfig
from cmcore.methods.base import STUDENT, TEACHER, Batch, LossOut, Method, Nets, Network, Progress, Traits
from cmcore.rng import Draws
from cmcore.sample.base import Sampler
from cmcore.sample.presets import few_step_sampler
from cmcore.sample.settings import Sampling
from cmcore.tensors import expand_like, mean_per_sample

FAKE, DISCRIMINATOR = "fake", "discriminator"


@dataclass(frozen=True, kw_only=True)
class Config:
    """The authors' constants for ImageNet 64 (their repository, main/edm)."""

    N: int = 1000  # levels of the Karras grid
    low: float = 0.02  # the generator's levels: this share of the grid, from the lowest on,
    high: float = 0.98  # to this
    turns: int = 5  # of the fake model for each of the generator
    gan: float = 0.0  # weight of the generator's adversarial loss, 0 for none; the authors train on with 3e-3
    guidance: float = 1.0  # scale of the teacher, which becomes part of the weights; 1 for none

    def __post_init__(self) -> None:
        require(self.guidance >= 0, "guidance", "a scale of at least 0", self.guidance)
        require(self.N >= 2, "N", "at least 2", self.N)
        require(0 <= self.low < 1, "low", "a share in [0, 1)", self.low)
        require(self.low < self.high <= 1, "high", f"a share above low = {self.low}", self.high)
        require(self.turns >= 1, "turns", "at least 1", self.turns)
        require(self.gan >= 0, "gan", "at least 0", self.gan)


@dataclass(frozen=True)
class DMD2(Method):
    """A one-step generator x_g = D(sigma_max n, sigma_max) descends KL(generated || data) at all noise levels.

    The gradient is D_fake - D_teacher, where the fake model is a denoiser of generated images that trains along. A step
    is one turn of the generator and `turns` of the fake model: `turns` of the authors' iterations. Without the GAN, no
    image is used.

    The authors' discriminator is a head on the fake model, which it trains as well; here it is a network of its own
    that starts as the teacher, and its logit is the mean of that network's output.
    """

    config: Config
    diffusion: DiffusionConfig

    @property
    def traits(self) -> Traits:
        """A one-step generator, taught by a diffusion model."""
        s = self.config.guidance
        return Traits(teacher="diffusion", guidance=(s, s) if s != 1 else None)

    @property
    def networks(self) -> Mapping[str, Network]:
        """The teacher, the fake model, and the discriminator where there is one; both start as the teacher."""
        trained = (FAKE, DISCRIMINATOR) if self.config.gan > 0 else (FAKE,)
        others = {name: Network(start="teacher", role="trained", player=name) for name in trained}
        return {TEACHER: Network(start="teacher"), **others}

    def turns(self, progress: Progress) -> Sequence[str]:
        """The generator first, as in the authors' code."""
        del progress
        critics = (FAKE, DISCRIMINATOR) if self.config.gan > 0 else (FAKE,)
        return (STUDENT, *critics * self.config.turns)

    def loss_of(self, player: str, nets: Nets, batch: Batch, progress: Progress, draws: Draws) -> LossOut:
        """The student's loss, the fake model's, or the discriminator's."""
        losses = {STUDENT: self.loss, FAKE: self.fake_loss, DISCRIMINATOR: self.discriminator_loss}
        return losses[player](nets, batch, progress, draws)

    def loss(self, nets: Nets, batch: Batch, progress: Progress, draws: Draws) -> LossOut:
        """1/2 ||x_g - sg(x_g - gradient)||^2, whose gradient in x_g is the normalised D_fake - D_teacher."""
        del progress  # no curriculum
        with draws.dropout():
            x_g = self.generated(nets, batch, draws)
        first, last = (round(share * self.config.N) for share in (self.config.low, self.config.high))
        sigma = self._levels(draws, first, min(last + 1, self.config.N))
        with torch.no_grad():
            x = x_g + expand_like(sigma, x_g) * draws.normal(x_g.shape[1:], stream="noise")
            with draws.dropout():
                fake = nets[FAKE](x, sigma, batch.labels)
            real = guided_at(nets.teacher, self.config.guidance)(x, sigma, batch.labels)
            scale = mean_per_sample((x_g - real).abs())
            # Where the teacher gives back the very image, there is nothing to learn.
            gradient = torch.nan_to_num((fake - real) / expand_like(scale, real))
        loss = mean_per_sample((x_g - (x_g - gradient).detach()) ** 2) / 2
        scalars: dict[str, Tensor | float] = {"gap": mean_per_sample((fake - real).abs()).mean(), "scale": scale.mean()}
        if self.config.gan > 0:
            sigma = self._levels(draws, 0, self.config.N, stream="gan_level")
            with draws.dropout():
                adversarial = softplus(-self.logit(nets, x_g, sigma, batch, draws, "gan_noise"))
            loss = loss + self.config.gan * adversarial
            scalars["adversarial"] = adversarial.detach().mean()
        return LossOut(loss, scalars)

    def fake_loss(self, nets: Nets, batch: Batch, progress: Progress, draws: Draws) -> LossOut:
        """Denoising score matching of generated images with EDM's weight, at levels of the whole grid."""
        del progress  # no curriculum
        with torch.no_grad(), draws.dropout():
            x_g = self.generated(nets, batch, draws)
        sigma = self._levels(draws, 0, self.config.N)
        x = x_g + expand_like(sigma, x_g) * draws.normal(x_g.shape[1:], stream="noise")
        with draws.dropout():
            D = nets[FAKE](x, sigma, batch.labels)
        error = mean_per_sample((D - x_g) ** 2)
        weight = weights.edm(sigma, self.diffusion.sigma_data).to(error.dtype)
        return LossOut(weight * error, {"denoising_error": error.detach().mean()})

    def discriminator_loss(self, nets: Nets, batch: Batch, progress: Progress, draws: Draws) -> LossOut:
        """The non-saturating loss of real and generated images with noise, at levels of the whole grid."""
        del progress  # no curriculum
        with torch.no_grad(), draws.dropout():
            x_g = self.generated(nets, batch, draws)
        sigma = self._levels(draws, 0, self.config.N)
        with draws.dropout():
            fake = self.logit(nets, x_g, sigma, batch, draws, "fake_noise")
        with draws.dropout():
            real = self.logit(nets, batch.x, sigma, batch, draws, "real_noise")
        return LossOut(softplus(fake) + softplus(-real), {"gap": (real - fake).detach().mean()})

    def logit(self, nets: Nets, x: Tensor, sigma: Tensor, batch: Batch, draws: Draws, stream: str) -> Tensor:
        """The discriminator's logit (B,) of images (B, C, H, W) with noise of a stream at levels sigma (B,)."""
        discriminator = nets[DISCRIMINATOR]
        x = x + expand_like(sigma, x) * draws.normal(x.shape[1:], stream=stream)
        scalings = discriminator.scalings(sigma)
        return mean_per_sample(discriminator.raw(expand_like(scalings.c_in, x) * x, scalings.c_noise, batch.labels))

    def generated(self, nets: Nets, batch: Batch, draws: Draws) -> Tensor:
        """Images from pure noise, with the labels of the batch."""
        sigma = torch.full((len(batch.x),), self.diffusion.sigma_max, dtype=torch.float64, device=batch.x.device)
        n = draws.normal(batch.x.shape[1:], stream="latent")
        return nets.student(expand_like(sigma, n) * n, sigma, batch.labels)

    def _levels(self, draws: Draws, first: int, stop: int, stream: str = "level") -> Tensor:
        """Levels (B,) drawn from the grid, whose first is sigma_min."""
        d = self.diffusion
        grid = karras_grid(self.config.N, d.sigma_min, d.sigma_max, d.rho).flip(0).to(draws.device)
        return grid[first + (draws.uniform(stream=stream) * (stop - first)).long()]

    def samplers(self, sampling: Sampling) -> list[Sampler]:
        """One step: the generator knows no other level."""
        return [self.guided(few_step_sampler(sampling.diffusion), sampling)]

    def scan(self, sampling: Sampling, levels: Sequence[float]) -> list[Sampler]:
        """None, as there is no second step."""
        del sampling, levels
        return []


def build(config: Config, diffusion: DiffusionConfig) -> DMD2:
    """The method for a noise range."""
    return DMD2(config, diffusion)
