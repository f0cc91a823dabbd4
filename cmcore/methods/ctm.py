"""CTM: consistency trajectory models (Kim et al., arXiv 2310.02279); their GAN is an option.

Settings that the paper does not state are those of the authors' repository, sony/ctm.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from cmcore.config import require
from cmcore.consistency import weights
from cmcore.consistency.distances import DistanceName, distance, services
from cmcore.consistency.guided import no_label
from cmcore.diffusion import ode
from cmcore.diffusion.grids import karras_grid
from cmcore.diffusion.guidance import Guided, Scales, check_scales, draw_scales, guidance_inputs, with_scale
from cmcore.diffusion.jumps import SECOND_TIME, Jumps, jump
from cmcore.diffusion.levels import KarrasUniform, sample_index
from cmcore.diffusion.ode import Denoise
from cmcore.diffusion.precond import Denoiser, with_inputs
from cmcore.diffusion.settings import DiffusionConfig
from cmcore.layers.classifier import shipped_classifier, shipped_workload
from cmcore.layers.heads import GROUP, build_heads, hinge_fake, hinge_real, maps_of
from cmcore.methods.base import (
    STUDENT,
    TARGET,
    TEACHER,
    Action,
    Batch,
    Blend,
    LossOut,
    Method,
    Nets,
    Network,
    Progress,
    Traits,
)
from cmcore.rng import Draws, generator
from cmcore.sample.base import Sampler
from cmcore.sample.gamma import GammaSampling
from cmcore.sample.settings import Sampling
from cmcore.tensors import expand_like, mean_per_sample

EXTRACTOR, DISCRIMINATOR = "extractor", "discriminator"


@dataclass(frozen=True, kw_only=True)
class Config:
    """The authors' constants for CIFAR-10."""

    N: int = 18  # grid points
    most: int = 17  # Heun steps of the teacher from t to u, drawn in proportion to their number
    distance: DistanceName = "lpips"
    huber_c: float = 0.03  # of pseudo_huber only
    mu: float = 0.999  # decay of the EMA target
    denoising: float = 1.0  # weight of the denoising loss; the authors balance it by gradients of the last layer
    P_mean: float = -1.2  # levels of the denoising loss: half of the rows lognormal,
    P_std: float = 1.2
    noisiest: float = 0.7  # half from this share of the Karras warp, from sigma_max on
    gamma: float = 0.0  # of the samplers
    gan: float = 0.0  # weight of the adversarial loss, 0 for none; the authors balance it by gradients, too
    gan_after: float = 0.5  # share of the run that the student trains without it
    extractor: str = "digits_cnn_4a0598e6"  # of the discriminator's features: a classifier of the project
    guidance: Scales | None = None  # range of the teacher's guidance scale, which the student learns (arXiv 2405.18503)

    def __post_init__(self) -> None:
        check_scales(self.guidance)
        require(self.N >= 2, "N", "at least 2", self.N)
        require(1 <= self.most < self.N, "most", f"from 1 to N - 1 = {self.N - 1}", self.most)
        require(self.huber_c > 0, "huber_c", "a positive number", self.huber_c)
        require(0 <= self.mu < 1, "mu", "a number in [0, 1)", self.mu)
        require(self.denoising >= 0, "denoising", "at least 0", self.denoising)
        require(self.P_std > 0, "P_std", "a positive number", self.P_std)
        require(0 < self.noisiest <= 1, "noisiest", "a share in (0, 1]", self.noisiest)
        require(0 <= self.gamma <= 1, "gamma", "a number in [0, 1]", self.gamma)
        require(self.gan >= 0, "gan", "at least 0", self.gan)
        require(0 <= self.gan_after < 1, "gan_after", "a share in [0, 1)", self.gan_after)
        if self.gan > 0:
            shipped_workload(self.extractor)


@dataclass(frozen=True)
class CTM(Method):
    """d(E(G(x_t, t, s), s, sigma_min), sg E(sg G(x^_u, u, s), s, sigma_min)) and a denoising loss of g(x, t; t).

    G is the jump of the student, E that of its moving average, and the teacher's ODE solver makes x^_u from x_t. With
    the GAN, heads on frozen features (a hinge loss) tell E(G(x_t, t, s), s, sigma_min) from images; the authors' frozen
    networks are those of StyleGAN-XL.

    With guidance the teacher is guided and all jumps see the scale w, as in SoundCTM; so that g(x, t; t) is the guided
    denoiser in the denoising loss too, its image x moves by (w - 1) (D(label) - D(no label)) of the teacher.
    """

    config: Config
    diffusion: DiffusionConfig

    @property
    def traits(self) -> Traits:
        """Maps between levels, taught by a diffusion model, perhaps at many guidance scales."""
        scales = self.config.guidance
        return Traits(
            teacher="diffusion",
            inputs=(SECOND_TIME, *guidance_inputs(scales)),
            guidance=scales,
            services=services(self.config.distance),
            group=GROUP if self.config.gan > 0 else 1,
        )

    @property
    def networks(self) -> Mapping[str, Network]:
        """The teacher, the moving average for the outer jumps, and what the GAN needs where there is one."""
        known = {TEACHER: Network(start="teacher"), TARGET: Network(start="student", role="moved")}
        if self.config.gan == 0:
            return known
        extractor = partial(shipped_classifier, self.config.extractor)
        heads = Network(role="trained", player=DISCRIMINATOR, make=lambda: build_heads(extractor()))
        return {**known, EXTRACTOR: Network(make=extractor), DISCRIMINATOR: heads}

    def adversarial(self, progress: Progress) -> bool:
        """Whether the GAN is on."""
        return self.config.gan > 0 and progress.fraction >= self.config.gan_after

    def turns(self, progress: Progress) -> Sequence[str]:
        """The discriminator, once it plays, then the student."""
        return (DISCRIMINATOR, STUDENT) if self.adversarial(progress) else (STUDENT,)

    def loss_of(self, player: str, nets: Nets, batch: Batch, progress: Progress, draws: Draws) -> LossOut:
        """The student's loss, or the discriminator's."""
        return (self.loss if player == STUDENT else self.discriminator_loss)(nets, batch, progress, draws)

    def levels(self, draws: Draws) -> tuple[Tensor, int]:
        """Grid indices (B,) of t, and the number of Heun steps to u, which is one for the whole batch."""
        cfg = self.config
        share = torch.arange(1, cfg.most + 1, dtype=torch.float64)
        own = generator(draws.seed, f"{draws.prefix}steps", draws.images)
        steps = 1 + int(sample_index(share / share.sum(), torch.rand(1, generator=own, dtype=torch.float64)))
        return (draws.uniform(stream="level") * (cfg.N - steps)).long(), steps

    def loss(self, nets: Nets, batch: Batch, progress: Progress, draws: Draws) -> LossOut:
        """Both parts, with noise of their own, and the adversarial one where it is on."""
        (consistency, estimate), denoising = self._consistency(nets, batch, draws), self._denoising(nets, batch, draws)
        scalars: dict[str, Tensor | float] = {"distance": consistency.detach().mean()}
        scalars["denoising"] = denoising.detach().mean()
        loss = consistency + self.config.denoising * denoising
        if self.adversarial(progress):
            adversarial = -nets[DISCRIMINATOR](maps_of(nets[EXTRACTOR], estimate)).mean(1)
            loss, scalars["adversarial"] = loss + self.config.gan * adversarial, adversarial.detach().mean()
        return LossOut(loss, scalars)

    def discriminator_loss(self, nets: Nets, batch: Batch, progress: Progress, draws: Draws) -> LossOut:
        """The hinge loss of images and of the student's estimates of them."""
        del progress  # no curriculum
        with torch.no_grad():
            _, estimate = self._consistency(nets, batch, draws)
            fake, real = (maps_of(nets[EXTRACTOR], x) for x in (estimate, batch.x))
        of_real, of_fake = nets[DISCRIMINATOR](real), nets[DISCRIMINATOR](fake)
        gap = of_real.detach().mean() - of_fake.detach().mean()
        return LossOut(hinge_real(of_real) + hinge_fake(of_fake), {"gap": gap})

    def _consistency(self, nets: Nets, batch: Batch, draws: Draws) -> tuple[Tensor, Tensor]:
        """The soft consistency loss, with t > u >= s on the grid, and the estimate that it compares.

        The outer jump passes gradients to its input.
        """
        d, w = self.diffusion, self._scales(draws)
        labels, teacher = batch.labels, nets.teacher
        if w is not None:
            labels, teacher = with_scale(labels, w), Guided(teacher, w)
        grid = karras_grid(self.config.N, d.sigma_min, d.sigma_max, d.rho).to(draws.device)
        at, steps = self.levels(draws)
        last = at + steps
        t, u = grid[at], grid[last]
        s = grid[last + (draws.uniform(stream="second") * (self.config.N - last)).long()]
        end = torch.full_like(s, d.sigma_min)
        z = draws.normal(batch.x.shape[1:], stream="noise")
        x_t = batch.x + expand_like(t, z) * z
        with torch.no_grad():
            x_u = x_t
            for step in range(steps):
                x_u = ode.heun_step(teacher, x_u, grid[at + step], grid[at + step + 1], batch.labels)
            with draws.dropout():
                target = jump(nets.student, x_u, u, s, labels)
            with draws.dropout():
                target = jump(nets.target, target, s, end, labels)
        with draws.dropout():
            estimate = jump(nets.student, x_t, t, s, labels)
        with draws.dropout():
            estimate = jump(nets.target, estimate, s, end, labels)
        return distance(self.config.distance, self.config.huber_c)(estimate, target), estimate

    def _scales(self, draws: Draws) -> Tensor | None:
        """The guidance scales (B,) of a step; None without guidance."""
        return None if self.config.guidance is None else draw_scales(self.config.guidance, draws)

    def _denoising(self, nets: Nets, batch: Batch, draws: Draws) -> Tensor:
        """EDM's loss of g(x, t; t), which is the denoiser."""
        cfg, d = self.config, self.diffusion
        normal = draws.normal(stream="denoising_level", dtype=torch.float64)
        u = 1 - cfg.noisiest * draws.uniform(stream="denoising_warp")
        warped = KarrasUniform(d.sigma_min, d.sigma_max, d.rho).sample(u)
        half = draws.uniform(stream="denoising_half") < 0.5
        sigma = torch.where(half, (cfg.P_mean + cfg.P_std * normal).exp(), warped)
        z = draws.normal(batch.x.shape[1:], stream="denoising_noise")
        w, labels, image = self._scales(draws), batch.labels, batch.x
        labels = labels if w is None else with_scale(labels, w)
        with draws.dropout():
            x = batch.x + expand_like(sigma, z) * z
            D = nets.student(x, sigma, with_inputs(labels, s=sigma))
        if w is not None:
            with torch.no_grad():
                gap = nets.teacher(x, sigma, batch.labels) - nets.teacher(x, sigma, no_label(batch.labels))
                image = image + expand_like(w - 1, x) * gap
        error = mean_per_sample((D - image) ** 2)
        return weights.edm(sigma, d.sigma_data).to(error.dtype) * error

    def after(self, progress: Progress) -> Sequence[Action]:
        """The moving average follows with constant decay."""
        del progress
        return (Blend(TARGET, self.config.mu),)

    def model(self, denoiser: Denoiser) -> Denoise:
        """Jumps, to sigma_min unless a sampler names another level."""
        return Jumps(denoiser, self.diffusion.sigma_min)

    def diffusion_model(self, denoiser: Denoiser) -> Denoise | None:
        """g(x, t; t), which the denoising loss trains, without guidance; None where it is always guided."""
        low, high = self.config.guidance or (1.0, 1.0)
        if not low <= 1 <= high:
            return None
        return lambda x, sigma, labels=None: denoiser(x, sigma, with_inputs(labels, s=sigma))

    def samplers(self, sampling: Sampling) -> list[Sampler]:
        """One jump, two, and four along a Karras grid."""
        d = sampling.diffusion
        grid = karras_grid(5, d.sigma_min, d.sigma_max, d.rho)[1:-1].tolist()
        return [self._through(sampling, levels) for levels in ((), (sampling.two_step,), grid)]

    def scan(self, sampling: Sampling, levels: Sequence[float]) -> list[Sampler]:
        """Two jumps through each of the levels."""
        return [self._through(sampling, (level,)) for level in levels]

    def _through(self, sampling: Sampling, levels: Sequence[float]) -> Sampler:
        d = sampling.diffusion
        return self.guided(GammaSampling((d.sigma_max, *levels), d.sigma_min, self.config.gamma), sampling)


def build(config: Config, diffusion: DiffusionConfig) -> CTM:
    """The method for a noise range."""
    return CTM(config, diffusion)
