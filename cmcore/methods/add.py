"""ADD: adversarial diffusion distillation (Sauer et al., arXiv 2311.17042), in EDM's levels.

The authors discriminate by features of DINOv2; here it is a classifier of the project. Where that classifier measures
too, the discriminator sees what the metrics see. LADD, their distillation of latent models (arXiv 2403.12015),
discriminates by what the teacher's own blocks make of noisy images: `features: teacher`, and `distillation: 0`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from cmcore.config import require
from cmcore.diffusion.grids import karras_grid
from cmcore.diffusion.levels import KarrasUniform
from cmcore.diffusion.settings import DiffusionConfig
from cmcore.layers.blocks import block_maps
from cmcore.layers.classifier import shipped_classifier, shipped_workload
from cmcore.layers.heads import (
    GROUP,
    build_block_heads,
    build_heads,
    gradient_penalty,
    hinge_fake,
    hinge_real,
    maps_of,
)
from cmcore.methods.base import STUDENT, TEACHER, Batch, LossOut, Method, Nets, Network, Progress, Traits
from cmcore.rng import Draws
from cmcore.sample.base import Sampler
from cmcore.sample.presets import few_step_sampler
from cmcore.sample.settings import Sampling
from cmcore.tensors import expand_like, sum_per_sample

EXTRACTOR, DISCRIMINATOR = "extractor", "discriminator"


@dataclass(frozen=True, kw_only=True)
class Config:
    """The authors' constants, as recalled from the paper."""

    extractor: str = "digits_cnn_4a0598e6"  # a classifier of the project, by the name that metrics in it have
    steps: int = 4  # levels of the student, from sigma_max on
    distillation: float = 2.5  # lambda, the weight of the squared distance, summed over the pixels
    r1: float = 1e-5  # gamma of the gradient penalty
    features: Literal["classifier", "teacher"] = "classifier"  # that the heads see
    m: float = 1.0  # of LADD's levels sigma_data exp(m + s z), which are logit-normal times of rectified flow
    s: float = 1.0

    def __post_init__(self) -> None:
        if self.features == "classifier":
            shipped_workload(self.extractor)
        require(self.steps >= 1, "steps", "at least 1", self.steps)
        require(self.distillation >= 0, "distillation", "at least 0", self.distillation)
        require(self.r1 >= 0, "r1", "at least 0", self.r1)
        require(self.s > 0, "s", "a positive number", self.s)


@dataclass(frozen=True)
class ADD(Method):
    """Hinge loss on frozen features, and the teacher's denoising of the student's images with new noise.

    The teacher's own features are of images with noise: in the discriminator's turn real and generated ones have the
    same.

    The student denoises images at one of a few levels, of which sigma_max is pure noise. A step is one turn of the
    discriminator and one of the student.
    """

    config: Config
    diffusion: DiffusionConfig

    @property
    def traits(self) -> Traits:
        """A few-step generator, taught by a diffusion model."""
        return Traits(teacher="diffusion", group=GROUP if self.config.features == "classifier" else 1)

    @property
    def networks(self) -> Mapping[str, Network]:
        """The teacher, the extractor where it is another network, and the heads on its maps."""
        if self.config.features == "teacher":
            heads = Network(start="teacher", role="trained", player=DISCRIMINATOR, make=build_block_heads)
            return {TEACHER: Network(start="teacher"), DISCRIMINATOR: heads}
        extractor = partial(shipped_classifier, self.config.extractor)
        return {
            TEACHER: Network(start="teacher"),
            EXTRACTOR: Network(make=extractor),
            DISCRIMINATOR: Network(
                role="trained", player=DISCRIMINATOR, make=lambda: build_heads(extractor())
            ),
        }  # fmt: skip

    @property
    def levels(self) -> Tensor:
        """The student's levels, descending."""
        d = self.diffusion
        return karras_grid(self.config.steps + 1, d.sigma_min, d.sigma_max, d.rho)[:-1]

    def turns(self, progress: Progress) -> Sequence[str]:
        """The discriminator, then the student."""
        del progress
        return (DISCRIMINATOR, STUDENT)

    def loss_of(self, player: str, nets: Nets, batch: Batch, progress: Progress, draws: Draws) -> LossOut:
        """The student's loss, or the discriminator's."""
        return (self.loss if player == STUDENT else self.discriminator_loss)(nets, batch, progress, draws)

    def loss(self, nets: Nets, batch: Batch, progress: Progress, draws: Draws) -> LossOut:
        """-D(x_g) + lambda c(t) ||x_g - sg D_teacher(sg x_g + t z)||^2.

        c(t) = sigma_data / sqrt(t^2 + sigma_data^2), the share of the signal: the paper's exponential weighting.
        """
        del progress  # no curriculum
        with draws.dropout():
            x_g = self.generated(nets, batch, draws)
        (maps,) = self.maps(nets, batch, draws, x_g)
        adversarial = -nets[DISCRIMINATOR](maps).mean(1)
        if self.config.distillation == 0:
            return LossOut(adversarial, {"adversarial": adversarial.detach().mean()})
        d = self.diffusion
        t = KarrasUniform(d.sigma_min, d.sigma_max, d.rho).sample(draws.uniform(stream="teacher_level"))
        with torch.no_grad():
            x_t = x_g + expand_like(t, x_g) * draws.normal(x_g.shape[1:], stream="teacher_noise")
            target = nets.teacher(x_t, t, batch.labels)
        c = (d.sigma_data / (t**2 + d.sigma_data**2).sqrt()).to(x_g.dtype)
        distillation = c * sum_per_sample((x_g - target) ** 2)
        loss = adversarial + self.config.distillation * distillation
        return LossOut(loss, {"adversarial": adversarial.detach().mean(), "distillation": distillation.detach().mean()})

    def discriminator_loss(self, nets: Nets, batch: Batch, progress: Progress, draws: Draws) -> LossOut:
        """The hinge loss of real and generated images, with a gradient penalty at the real ones."""
        del progress  # no curriculum
        with torch.no_grad():
            with draws.dropout():
                x_g = self.generated(nets, batch, draws)
            fake, real = self.maps(nets, batch, draws, x_g, batch.x)
        real = [values.requires_grad_() for values in real]
        of_real, of_fake = (nets[DISCRIMINATOR](maps) for maps in (real, fake))
        loss = hinge_real(of_real) + hinge_fake(of_fake) + self.config.r1 * gradient_penalty(of_real, real)
        gap = of_real.detach().mean() - of_fake.detach().mean()
        return LossOut(loss, {"gap": gap})

    def maps(self, nets: Nets, batch: Batch, draws: Draws, *images: Tensor) -> list[list[Tensor]]:
        """What the heads see of images (B, C, H, W), all with the same noise where it is the teacher's features."""
        if self.config.features == "classifier":
            return [maps_of(nets[EXTRACTOR], x) for x in images]
        d, z = self.diffusion, draws.normal(stream="feature_level", dtype=torch.float64)
        sigma = (d.sigma_data * (self.config.m + self.config.s * z).exp()).clamp(d.sigma_min, d.sigma_max)
        n = expand_like(sigma, batch.x) * draws.normal(batch.x.shape[1:], stream="feature_noise")
        return [block_maps(nets.teacher, x + n, sigma, batch.labels) for x in images]

    def generated(self, nets: Nets, batch: Batch, draws: Draws) -> Tensor:
        """The student's images: of pure noise at sigma_max, of noisy images at its other levels."""
        levels = self.levels.to(draws.device)
        sigma = levels[(draws.uniform(stream="level") * len(levels)).long()]
        n = expand_like(sigma, batch.x) * draws.normal(batch.x.shape[1:], stream="noise")
        pure = expand_like(sigma == levels[0], batch.x).bool()
        return nets.student(torch.where(pure, n, batch.x + n), sigma, batch.labels)

    def samplers(self, sampling: Sampling) -> list[Sampler]:
        """One step, two where there are three levels or more, and all."""
        d, levels = sampling.diffusion, self.levels[1:].tolist()
        chosen = dict.fromkeys([(), tuple(levels[len(levels) // 2 :][:1]), tuple(levels)])
        return [self.guided(few_step_sampler(d, *row), sampling) for row in chosen]

    def scan(self, sampling: Sampling, levels: Sequence[float]) -> list[Sampler]:
        """None: the student knows its own levels alone."""
        del sampling, levels
        return []


def build(config: Config, diffusion: DiffusionConfig) -> ADD:
    """The method for a noise range."""
    return ADD(config, diffusion)
