"""sCD: continuous-time consistency distillation in TrigFlow (Lu and Song, arXiv 2410.11081, Alg. 1)."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from cmcore.consistency.tangents import conditional_trig_net, derivative_precision
from cmcore.consistency.trigflow import WEIGHT, TrigConfig, continuous_loss, sample_point
from cmcore.consistency.weights import AdaptiveWeight
from cmcore.diffusion.guidance import Guided, Scales, check_scales, draw_scales, guidance_inputs, with_scale
from cmcore.diffusion.settings import DiffusionConfig
from cmcore.methods.base import TEACHER, Batch, LossOut, Method, Nets, Network, Progress, Traits
from cmcore.rng import Draws


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
class SCD(Method):
    """dx/dt comes from the teacher, which may be guided: sigma_data F_teacher(x_t/sigma_data, t)."""

    config: Config
    diffusion: DiffusionConfig

    @property
    def traits(self) -> Traits:
        """A consistency model taught by a diffusion model, perhaps at many guidance scales."""
        scales = self.config.guidance
        return Traits(
            teacher="diffusion", inputs=guidance_inputs(scales), guidance=scales, image_counts=("warmup_images",)
        )

    @property
    def networks(self) -> Mapping[str, Network]:
        """The teacher, and w_phi of Algorithm 1, where there is one."""
        weight = {WEIGHT: Network(role="trained", make=AdaptiveWeight)} if self.config.weighting == "adaptive" else {}
        return {TEACHER: Network(start="teacher"), **weight}

    def loss(self, nets: Nets, batch: Batch, progress: Progress, draws: Draws) -> LossOut:
        """The loss of Algorithm 1; F and its derivative come from one pass, so they share the dropout mask."""
        sd = self.diffusion.sigma_data
        point = sample_point(batch.x, self.config, sd, draws)
        labels, teacher = batch.labels, conditional_trig_net(nets.teacher)
        if self.config.guidance is not None:
            s = draw_scales(self.config.guidance, draws)
            labels, teacher = with_scale(labels, s), Guided(teacher, s)
        # In the precision of the derivative: it is its direction, and cancels in the difference g at the optimum.
        with torch.no_grad(), derivative_precision(point.x_t.device):
            dx_dt = sd * teacher(point.x_t / sd, point.t, batch.labels)
        r = self.config.warmup(progress.images)
        weight = nets[WEIGHT] if self.config.weighting == "adaptive" else None
        with draws.dropout():
            return LossOut(*continuous_loss(nets.student, weight, labels, point, dx_dt, self.config, r))


def build(config: Config, diffusion: DiffusionConfig) -> SCD:
    """The method for a noise range."""
    return SCD(config, diffusion)
