"""sCT: continuous-time consistency training in TrigFlow (Lu and Song, arXiv 2410.11081, Alg. 1)."""

from dataclasses import dataclass, field

from cmcore.consistency.trigflow import WEIGHT_HEAD, TrigConfig, continuous_loss, new_heads, sample_point
from cmcore.diffusion.path import TrigFlow
from cmcore.diffusion.settings import DiffusionConfig
from cmcore.methods.base import Batch, LossOut, Models, Needs, Progress
from cmcore.rng import Draws


@dataclass(frozen=True, kw_only=True)
class Config(TrigConfig):
    """The paper's constants for CIFAR-10 (App. D)."""


@dataclass(frozen=True)
class SCT:
    """dx/dt comes from the data: cos t z - sin t x_0. Started from a diffusion model, as in the paper."""

    config: Config
    diffusion: DiffusionConfig
    needs: Needs = field(default_factory=lambda: Needs(heads=new_heads()))
    boundary: bool = False
    few_step: bool = True

    def loss(self, models: Models, batch: Batch, progress: Progress, draws: Draws) -> LossOut:
        """The loss of Algorithm 1; F and its derivative come from one pass, so they share the dropout mask."""
        point = sample_point(batch.x, self.config, self.diffusion.sigma_data, draws)
        dx_dt = TrigFlow(self.diffusion.sigma_data).at(point.t).velocity(batch.x, point.z)
        r = self.config.warmup(progress.images)
        with draws.dropout():
            return LossOut(
                *continuous_loss(models.student, models.heads[WEIGHT_HEAD], batch.labels, point, dx_dt, self.config, r)
            )

    def target_decay(self, progress: Progress) -> float:
        """There is no EMA target."""
        raise NotImplementedError("sct has no EMA target")


def build(config: Config, diffusion: DiffusionConfig) -> SCT:
    """The method for a noise range."""
    return SCT(config, diffusion)
