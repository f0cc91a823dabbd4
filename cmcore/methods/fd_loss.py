"""FD-loss: post-training on the Frechet distance itself (Yang et al., arXiv 2604.28190).

Of the paper only the abstract was read: the distance is that of a large population, the gradient that of a batch.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import NamedTuple

import torch
from torch import Tensor

from cmcore.config import require
from cmcore.diffusion.precond import as_condition
from cmcore.diffusion.settings import DiffusionConfig
from cmcore.layers.classifier import shipped_classifier, shipped_moments, shipped_workload
from cmcore.methods.base import Batch, LossOut, Method, Nets, Network, Progress, Traits
from cmcore.rng import Draws
from cmcore.sample.base import Sampler
from cmcore.sample.presets import few_step_sampler
from cmcore.sample.settings import Sampling
from cmcore.tensors import expand_like

EXTRACTOR = "extractor"


@dataclass(frozen=True, kw_only=True)
class Config:
    """The features whose Frechet distance is descended, and the population it is of."""

    extractor: str = "digits_cnn_4a0598e6"  # a classifier of the project, by the name that metrics in it have
    batches: int = 49  # behind the moments of every step: the abstract's 50k images in batches of 1024

    def __post_init__(self) -> None:
        require(self.batches >= 1, "batches", "at least 1", self.batches)
        shipped_workload(self.extractor)


class Frechet(NamedTuple):
    """The distance of a population from the reference, and its derivative by the population's moments."""

    distance: Tensor
    mean: Tensor  # of the population, (D,)
    by_mean: Tensor  # (D,)
    by_cov: Tensor  # (D, D)

    def influence(self, f: Tensor) -> Tensor:
        """A scalar for every row of features (B, D) whose gradient by that row is n times the distance's.

        n is the size of the population; of the distance this is the derivative by the empirical distribution.
        """
        centred = f - self.mean
        return f @ self.by_mean + ((centred @ self.by_cov) * centred).sum(1)


def frechet(mean: Tensor, cov: Tensor, real_mean: Tensor, real_root: Tensor) -> Frechet:
    """|m - m_r|^2 + tr(S + S_r - 2 (S^{1/2} S_r S^{1/2})^{1/2}), from m (D,), S (D, D), m_r and S_r^{1/2}, in float64.

    Its derivative by S is I - S_r^{1/2} (S_r^{1/2} S S_r^{1/2})^{-1/2} S_r^{1/2}: zero where S = S_r. Directions in
    which the population does not vary have no derivative; they take that of a millionth of the data's mean variance.
    """
    values, vectors = torch.linalg.eigh(real_root @ cov @ real_root)
    values = values.clamp(min=1e-12 * (real_root.square().sum() / len(mean)) ** 2)
    transport = real_root @ (vectors / values.sqrt()) @ vectors.T @ real_root
    distance = (mean - real_mean).square().sum() + cov.trace() + real_root.square().sum() - 2 * values.sqrt().sum()
    return Frechet(distance, mean, 2 * (mean - real_mean), torch.eye(len(mean)).to(cov) - transport)


@dataclass(frozen=True)
class FDLoss(Method):
    """A one-step generator x_g = D(sigma_max n, sigma_max) descends the Frechet distance of its population.

    The moments of a step are those of fresh images of the present generator, so the gradient is exact but for their
    number. No image is used: the moments of the data come with the extractor. Where the same extractor measures, the
    distance in it no longer says how good the images are; the other metrics do.
    """

    config: Config
    diffusion: DiffusionConfig

    @cached_property
    def real(self) -> tuple[Tensor, Tensor]:
        """Mean (D,) and root of the covariance (D, D) of the data, float64."""
        mean, cov = shipped_moments(self.config.extractor)
        values, vectors = torch.linalg.eigh(cov)
        return mean, (vectors * values.clamp(min=0).sqrt()) @ vectors.T

    @property
    def networks(self) -> Mapping[str, Network]:
        """The extractor."""
        return {EXTRACTOR: Network(make=partial(shipped_classifier, self.config.extractor))}

    @property
    def traits(self) -> Traits:
        """A one-step generator."""
        return Traits()

    def loss(self, nets: Nets, batch: Batch, progress: Progress, draws: Draws) -> LossOut:
        """The influence of each image on the distance of the population."""
        del progress  # no curriculum
        if as_condition(batch.labels).labels is not None:
            raise ValueError("fd_loss: expected an unconditional network; set conditional to false")
        found = self.population(nets, batch, draws)
        with draws.dropout():
            x_g = self.generated(nets, draws.normal(batch.x.shape[1:], stream="latent"))
        f = features(nets, x_g)
        return LossOut(found.influence(f).float(), {"fd": found.distance.float()})

    @torch.no_grad()
    def population(self, nets: Nets, batch: Batch, draws: Draws) -> Frechet:
        """The distance of images drawn for this step alone, the same ones on every worker."""
        noise = draws.batches(batch.x.shape[1:], self.config.batches, stream="population")
        with draws.dropout():
            f = torch.cat([features(nets, self.generated(nets, n)) for n in noise])
        mean = f.mean(0)
        centred = f - mean
        real_mean, real_root = (tensor.to(f.device) for tensor in self.real)
        return frechet(mean, centred.T @ centred / (len(f) - 1), real_mean, real_root)

    def generated(self, nets: Nets, n: Tensor) -> Tensor:
        """Images (B, C, H, W) from pure noise n."""
        sigma = torch.full((len(n),), self.diffusion.sigma_max, dtype=torch.float64, device=n.device)
        return nets.student(expand_like(sigma, n) * n, sigma)

    def samplers(self, sampling: Sampling) -> list[Sampler]:
        """One step: the generator knows no other level."""
        return [self.guided(few_step_sampler(sampling.diffusion), sampling)]

    def scan(self, sampling: Sampling, levels: Sequence[float]) -> list[Sampler]:
        """None, as there is no second step."""
        del sampling, levels
        return []


def features(nets: Nets, x: Tensor) -> Tensor:
    """Features (B, D) in float64 of images as they are measured: clipped, or the generator hides beyond the range."""
    return nets[EXTRACTOR].features(x.float().clamp(-1, 1)).double()


def build(config: Config, diffusion: DiffusionConfig) -> FDLoss:
    """The method for a noise range."""
    return FDLoss(config, diffusion)
