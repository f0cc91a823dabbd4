"""EDM: a denoiser for all noise levels, the teacher of the distilled methods (Karras et al., arXiv 2206.00364)."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from cmcore.config import require
from cmcore.consistency import weights
from cmcore.diffusion.guidance import drop_labels
from cmcore.diffusion.settings import DiffusionConfig
from cmcore.layers.uncertainty import Uncertainty
from cmcore.methods.base import Batch, LossOut, Method, Nets, Network, Progress, Traits
from cmcore.rng import Draws
from cmcore.tensors import expand_like, mean_per_sample

UNCERTAINTY = "uncertainty"


@dataclass(frozen=True, kw_only=True)
class Config:
    """ln sigma ~ N(P_mean, P_std^2) (Table 1). EDM2 (arXiv 2312.02696) turns `uncertainty` on."""

    P_mean: float = -1.2
    P_std: float = 1.2
    reduction: Literal["sum", "mean"] = "sum"  # over the pixels; EDM, EDM2 sum, CM on ImageNet and LSUN averages
    uncertainty: bool = False  # learn how uncertain each level is, so that all weigh the same (EDM2, Eq. 21)
    label_dropout: float = 0.0  # share of labels left out, so that the model can be guided (arXiv 2207.12598)

    def __post_init__(self) -> None:
        require(self.P_std > 0, "P_std", "a positive number", self.P_std)
        require(0 <= self.label_dropout <= 1, "label_dropout", "a probability, from 0 to 1", self.label_dropout)


@dataclass(frozen=True)
class EDM(Method):
    """Denoising score matching with EDM's weighting (Eq. 8).

    Sum and mean over the pixels, u(sigma) of EDM2 included, differ by a constant factor. Adam takes it out again, but
    for its eps, which counts for less beside the gradients of a sum.
    """

    config: Config
    diffusion: DiffusionConfig

    @property
    def traits(self) -> Traits:
        """A diffusion model, which can be guided where it has seen images without labels."""
        return Traits(few_step=False, unlabelled=self.config.label_dropout > 0)

    @property
    def networks(self) -> Mapping[str, Network]:
        """EDM2's u(sigma), where it is learned."""
        return {UNCERTAINTY: Network(role="trained", make=Uncertainty)} if self.config.uncertainty else {}

    def loss(self, nets: Nets, batch: Batch, progress: Progress, draws: Draws) -> LossOut:
        """lambda(sigma) ||D(x + sigma z, sigma) - x||^2, or this over e^u(sigma), plus u(sigma) (EDM2, Eq. 21)."""
        del progress  # no curriculum
        ln_sigma = self.config.P_mean + self.config.P_std * draws.normal(stream="level", dtype=torch.float64)
        sigma = ln_sigma.exp()
        z = draws.normal(batch.x.shape[1:], stream="noise")
        labels = drop_labels(batch.labels, self.config.label_dropout, draws)
        with draws.dropout():
            D = nets.student(batch.x + expand_like(sigma, z) * z, sigma, labels)
        error = mean_per_sample((D - batch.x) ** 2)
        loss = weights.edm(sigma, self.diffusion.sigma_data).to(error.dtype) * error
        scalars: dict[str, Tensor | float] = {"denoising_error": error.detach().mean()}
        if self.config.uncertainty:
            u = nets[UNCERTAINTY](sigma)
            loss = loss / u.exp() + u
            scalars["uncertainty"] = u.detach().mean()
        return LossOut(loss * batch.x[0].numel() if self.config.reduction == "sum" else loss, scalars)


def build(config: Config, diffusion: DiffusionConfig) -> EDM:
    """The method for a noise range."""
    return EDM(config, diffusion)
