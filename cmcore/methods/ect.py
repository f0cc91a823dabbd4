"""ECT: easy consistency tuning of a diffusion model (Geng et al., arXiv 2406.14548)."""

import math
from dataclasses import dataclass
from typing import Literal

import torch

from cmcore.config import require
from cmcore.consistency import weights
from cmcore.consistency.curriculum import ect_stage, ect_target_level
from cmcore.consistency.distances import pseudo_huber
from cmcore.diffusion.settings import DiffusionConfig
from cmcore.methods.base import Batch, LossOut, Method, Nets, Progress, Traits
from cmcore.rng import Draws
from cmcore.tensors import expand_like

FLOAT32_BITS = 24  # of precision: the network cannot tell levels apart that are closer


@dataclass(frozen=True, kw_only=True)
class Config:
    """The authors' constants for CIFAR-10."""

    P_mean: float = -1.1
    P_std: float = 2.0
    q: float = 2.0  # the gap shrinks as q^-(stage+1)
    k: float = 8.0
    b: float = 1.0
    stages: int = 8  # equal parts of the run
    ratio_limit: float = 1.0  # bound of r/t; TCM (arXiv 2410.14895) uses 0.999
    huber_c: float = 1e-8  # the paper's 0 has an undefined gradient where both sides are equal
    # 1/(t - r) for CIFAR-10, EDM's for ImageNet; 1, which the paper has not
    weighting: Literal["gap", "edm", "none"] = "gap"

    def __post_init__(self) -> None:
        require(self.P_std > 0, "P_std", "a positive number", self.P_std)
        require(self.q > 1, "q", "more than 1", self.q)
        require(self.k >= 0, "k", "at least 0", self.k)
        require(self.stages >= 1, "stages", "at least 1", self.stages)
        resolved = self.ratio_limit < 1 or self.stages * math.log2(self.q) <= FLOAT32_BITS
        require(resolved, "stages", f"q^stages within 2^{FLOAT32_BITS}, or r rounds to t", f"{self.q}^{self.stages}")
        require(0 < self.ratio_limit <= 1, "ratio_limit", "a number in (0, 1]", self.ratio_limit)
        require(self.huber_c > 0, "huber_c", "a positive number", self.huber_c)

    @property
    def first_step(self) -> float:
        """The share of the run after which the curriculum takes its first step."""
        return 1 / self.stages


@dataclass(frozen=True)
class ECT(Method):
    """w(t, r) PseudoHuber(f(x + t z, t), sg f(x + r z, r)) with continuous t and r(t) moving towards t by stages.

    EDM's plain scalings: where r = 0 the target is the clean image itself, so stage 0 begins as denoising.
    """

    config: Config
    diffusion: DiffusionConfig

    @property
    def traits(self) -> Traits:
        """A consistency model with EDM's plain scalings."""
        return Traits(first_step=self.config.first_step)

    def loss(self, nets: Nets, batch: Batch, progress: Progress, draws: Draws) -> LossOut:
        """Same noise, same dropout mask, same weights on both sides."""
        cfg = self.config
        ln_t = cfg.P_mean + cfg.P_std * draws.normal(stream="level", dtype=torch.float64)
        t = ln_t.exp()
        # In the official script a stage begins one iteration late, as its first tick is a single batch.
        stage = ect_stage(max(0, progress.images - progress.batch) / progress.total, cfg.stages)
        r = ect_target_level(t, stage, q=cfg.q, k=cfg.k, b=cfg.b, ratio_limit=cfg.ratio_limit)
        z = draws.normal(batch.x.shape[1:], stream="noise")
        with torch.no_grad(), draws.dropout():
            # The network is defined for r > 0 only; rows with r = 0 are replaced by the data right below.
            r_net = torch.where(r > 0, r, torch.full_like(r, self.diffusion.sigma_min))
            f_r = nets.student(batch.x + expand_like(r_net, z) * z, r_net, batch.labels)
            target = torch.where(expand_like(r, z) > 0, f_r, batch.x)
        with draws.dropout():
            f_t = nets.student(batch.x + expand_like(t, z) * z, t, batch.labels)
        gap = pseudo_huber(f_t, target, cfg.huber_c)
        weight = {
            "gap": lambda: weights.inverse_gap(t, r),
            "edm": lambda: weights.edm(t, self.diffusion.sigma_data),
            "none": lambda: torch.ones_like(t),
        }[cfg.weighting]()
        return LossOut(weight.to(gap.dtype) * gap, {"stage": float(stage), "distance": gap.detach().mean()})


def build(config: Config, diffusion: DiffusionConfig) -> ECT:
    """The method for a noise range."""
    return ECT(config, diffusion)
