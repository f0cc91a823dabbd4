"""DMD2: improved distribution matching distillation (Yin et al., arXiv 2405.14867), without its GAN."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cmcore.config import require
from cmcore.consistency import weights
from cmcore.diffusion.grids import karras_grid
from cmcore.diffusion.settings import DiffusionConfig
from cmcore.methods.base import STUDENT, TEACHER, Batch, LossOut, Method, Nets, Network, Progress, Traits
from cmcore.rng import Draws
from cmcore.sample.base import Sampler
from cmcore.sample.presets import few_step_sampler
from cmcore.sample.settings import Sampling
from cmcore.tensors import expand_like, mean_per_sample

FAKE = "fake"


@dataclass(frozen=True, kw_only=True)
class Config:
    """The authors' constants for ImageNet 64 (their repository, main/edm)."""

    N: int = 1000  # levels of the Karras grid
    low: float = 0.02  # the generator's levels: this share of the grid, from the lowest on,
    high: float = 0.98  # to this
    turns: int = 5  # of the fake model for each of the generator

    def __post_init__(self) -> None:
        require(self.N >= 2, "N", "at least 2", self.N)
        require(0 <= self.low < 1, "low", "a share in [0, 1)", self.low)
        require(self.low < self.high <= 1, "high", f"a share above low = {self.low}", self.high)
        require(self.turns >= 1, "turns", "at least 1", self.turns)


@dataclass(frozen=True)
class DMD2(Method):
    """A one-step generator x_g = D(sigma_max n, sigma_max) descends KL(generated || data) at all noise levels.

    The gradient is D_fake - D_teacher, where the fake model is a denoiser of generated images that trains along. A step
    is one turn of the generator and `turns` of the fake model: `turns` of the authors' iterations. No image is used.
    """

    config: Config
    diffusion: DiffusionConfig

    @property
    def traits(self) -> Traits:
        """A one-step generator, taught by a diffusion model."""
        return Traits(teacher="diffusion")

    @property
    def networks(self) -> Mapping[str, Network]:
        """The teacher, and the fake model, which starts as it."""
        return {TEACHER: Network(start="teacher"), FAKE: Network(start="teacher", role="trained", player=FAKE)}

    def turns(self, progress: Progress) -> Sequence[str]:
        """The generator first, as in the authors' code."""
        del progress
        return (STUDENT, *[FAKE] * self.config.turns)

    def loss_of(self, player: str, nets: Nets, batch: Batch, progress: Progress, draws: Draws) -> LossOut:
        """The student's loss, or the fake model's."""
        return (self.loss if player == STUDENT else self.fake_loss)(nets, batch, progress, draws)

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
            real = nets.teacher(x, sigma, batch.labels)
            scale = mean_per_sample((x_g - real).abs())
            # Where the teacher gives back the very image, there is nothing to learn.
            gradient = torch.nan_to_num((fake - real) / expand_like(scale, real))
        loss = mean_per_sample((x_g - (x_g - gradient).detach()) ** 2) / 2
        return LossOut(loss, {"gap": mean_per_sample((fake - real).abs()).mean(), "scale": scale.mean()})

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

    def generated(self, nets: Nets, batch: Batch, draws: Draws) -> Tensor:
        """Images from pure noise, with the labels of the batch."""
        sigma = torch.full((len(batch.x),), self.diffusion.sigma_max, dtype=torch.float64, device=batch.x.device)
        n = draws.normal(batch.x.shape[1:], stream="latent")
        return nets.student(expand_like(sigma, n) * n, sigma, batch.labels)

    def _levels(self, draws: Draws, first: int, stop: int) -> Tensor:
        """Levels (B,) drawn from the grid, whose first is sigma_min."""
        d = self.diffusion
        grid = karras_grid(self.config.N, d.sigma_min, d.sigma_max, d.rho).flip(0).to(draws.device)
        return grid[first + (draws.uniform(stream="level") * (stop - first)).long()]

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
