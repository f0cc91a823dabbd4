"""sCT: continuous-time consistency training in TrigFlow (Lu and Song, arXiv 2410.11081, Alg. 1)."""

from collections.abc import Mapping
from dataclasses import dataclass

from cmcore.consistency.trigflow import WEIGHT, TrigConfig, continuous_loss, sample_point
from cmcore.consistency.weights import AdaptiveWeight
from cmcore.diffusion.path import TrigFlow
from cmcore.diffusion.settings import DiffusionConfig
from cmcore.methods.base import Batch, LossOut, Method, Nets, Network, Progress, Traits
from cmcore.rng import Draws


@dataclass(frozen=True, kw_only=True)
class Config(TrigConfig):
    """The paper's constants for CIFAR-10 (App. D)."""


@dataclass(frozen=True)
class SCT(Method):
    """dx/dt comes from the data: cos t z - sin t x_0. Started from a diffusion model, as in the paper."""

    config: Config
    diffusion: DiffusionConfig

    @property
    def traits(self) -> Traits:
        """A consistency model trained from data alone."""
        return Traits(image_counts=("warmup_images",))

    @property
    def networks(self) -> Mapping[str, Network]:
        """w_phi of Algorithm 1, where there is one."""
        return {WEIGHT: Network(role="trained", make=AdaptiveWeight)} if self.config.weighting == "adaptive" else {}

    def loss(self, nets: Nets, batch: Batch, progress: Progress, draws: Draws) -> LossOut:
        """The loss of Algorithm 1; F and its derivative come from one pass, so they share the dropout mask."""
        point = sample_point(batch.x, self.config, self.diffusion.sigma_data, draws)
        dx_dt = TrigFlow(self.diffusion.sigma_data).at(point.t).velocity(batch.x, point.z)
        r = self.config.warmup(progress.images)
        weight = nets[WEIGHT] if self.config.weighting == "adaptive" else None
        with draws.dropout():
            return LossOut(*continuous_loss(nets.student, weight, batch.labels, point, dx_dt, self.config, r))


def build(config: Config, diffusion: DiffusionConfig) -> SCT:
    """The method for a noise range."""
    return SCT(config, diffusion)
