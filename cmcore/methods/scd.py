"""sCD: continuous-time consistency distillation in TrigFlow (Lu and Song, arXiv 2410.11081, Alg. 1)."""

from dataclasses import dataclass, field

import torch

from cmcore.consistency.tangents import conditional_trig_net
from cmcore.consistency.trigflow import WEIGHT_HEAD, TrigConfig, continuous_loss, new_heads, sample_point
from cmcore.diffusion.guidance import Guided, Scales, check_scales, draw_scales, with_scale
from cmcore.diffusion.settings import DiffusionConfig
from cmcore.methods.base import Batch, LossOut, Models, Needs, Progress
from cmcore.rng import Draws
from cmcore.tensors import full_precision


@dataclass(frozen=True, kw_only=True)
class Config(TrigConfig):
    """The paper's constants for CIFAR-10 (App. D)."""

    guidance: Scales | None = (
        None  # range of the teacher's guidance scale, which the student learns; ImageNet 512's is 1, 2
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        check_scales(self.guidance)


@dataclass(frozen=True)
class SCD:
    """dx/dt comes from the teacher, which may be guided: sigma_data F_teacher(x_t/sigma_data, t)."""

    config: Config
    diffusion: DiffusionConfig
    needs: Needs = field(default_factory=lambda: Needs(teacher=True, heads=new_heads()))
    boundary: bool = False
    few_step: bool = True

    def loss(self, models: Models, batch: Batch, progress: Progress, draws: Draws) -> LossOut:
        """The loss of Algorithm 1; F and its derivative come from one pass, so they share the dropout mask."""
        if models.teacher is None:
            raise ValueError("scd needs a teacher: set init to the name of a diffusion run")
        sd = self.diffusion.sigma_data
        point = sample_point(batch.x, self.config, sd, draws)
        labels, teacher = batch.labels, conditional_trig_net(models.teacher)
        if self.config.guidance is not None:
            s = draw_scales(self.config.guidance, draws)
            labels, teacher = with_scale(labels, s), Guided(teacher, s)
        # The direction of a derivative in full precision, and half of the difference in g that vanishes at the optimum.
        with torch.no_grad(), full_precision(point.x_t.device):
            dx_dt = sd * teacher(point.x_t / sd, point.t, batch.labels)
        r = self.config.warmup(progress.images)
        with draws.dropout():
            return LossOut(
                *continuous_loss(models.student, models.heads[WEIGHT_HEAD], labels, point, dx_dt, self.config, r)
            )

    def target_decay(self, progress: Progress) -> float:
        """There is no EMA target."""
        raise NotImplementedError("scd has no EMA target")


def build(config: Config, diffusion: DiffusionConfig) -> SCD:
    """The method for a noise range."""
    return SCD(config, diffusion)
