"""Parts that sCT and sCD share: the sampled TrigFlow point and Algorithm 1's loss (arXiv 2410.11081)."""

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from cmcore.config import require
from cmcore.consistency.tangents import consistency_tangent, normalise, scaled_jvp, trig_net
from cmcore.diffusion.path import TrigFlow
from cmcore.diffusion.precond import Denoiser, Labels
from cmcore.rng import Draws
from cmcore.tensors import norm_per_sample, sum_per_sample

WEIGHT = "adaptive_weight"  # the name of w_phi among the networks of a run


@dataclass(frozen=True, kw_only=True)
class TrigConfig:
    """Constants of Algorithm 1."""

    P_mean: float = -1.0  # tau ~ N(P_mean, P_std^2), t = arctan(e^tau / sigma_data)
    P_std: float = 1.4
    c: float = 0.1  # of the tangent normalisation
    warmup_images: int = 5_120_000  # the paper's H = 10k iterations of 512 images
    tangent: Literal["normalised", "clipped", "plain"] = "normalised"  # clipped: to [-1, 1], the paper's other choice
    weighting: Literal["adaptive", "none"] = "adaptive"  # none: w = 0

    def __post_init__(self) -> None:
        require(self.P_std > 0, "P_std", "a positive number", self.P_std)
        require(self.c >= 0, "c", "at least 0", self.c)
        require(self.warmup_images >= 0, "warmup_images", "at least 0", self.warmup_images)

    def warmup(self, images: int) -> float:
        """r = min(1, images / warmup_images)."""
        return min(1.0, images / self.warmup_images) if self.warmup_images else 1.0

    def bounded(self, g: Tensor) -> Tensor:
        """The tangent (B, ...) as the loss takes it (sec. 4.2)."""
        if self.tangent == "normalised":
            return normalise(g, self.c)
        return g.clamp(-1, 1) if self.tangent == "clipped" else g


class TrigPoint(NamedTuple):
    """A noisy point of TrigFlow: x_t (B, ...), t (B,) float64, and the noise z it was made with (B, ...)."""

    x_t: Tensor
    t: Tensor
    z: Tensor


def sample_point(x: Tensor, config: TrigConfig, sigma_data: float, draws: Draws) -> TrigPoint:
    """Draw t from the proposal and z ~ N(0, sigma_data^2 I), and mix."""
    tau = config.P_mean + config.P_std * draws.normal(stream="level", dtype=torch.float64)
    path = TrigFlow(sigma_data)
    t = path.time(tau.exp())
    z = path.noise_std * draws.normal(x.shape[1:], stream="noise")
    return TrigPoint(path.at(t).mix(x, z), t, z)


def continuous_loss(
    student: Denoiser,
    weight: nn.Module | None,
    labels: Labels,
    point: TrigPoint,
    dx_dt: Tensor,
    config: TrigConfig,
    r: float,
) -> tuple[Tensor, dict[str, Tensor | float]]:
    """e^w / D ||F - sg(F + g)||^2 - w, per sample, and scalars to log (arXiv 2410.11081, Eq. 8 and Alg. 1).

    The weight's prior 1/(sigma_data tan t) is already inside g (its factor cos t), so nothing else multiplies the loss.
    Without a weight w is 0.
    """
    sd = student.sigma_data
    tangent = scaled_jvp(trig_net(student, labels), point.x_t, point.t, dx_dt, sd)
    g = consistency_tangent(point.x_t, point.t, dx_dt, tangent, sd, r)
    w = torch.zeros_like(point.t, dtype=torch.float32) if weight is None else weight(point.t)
    squared = sum_per_sample((tangent.F - tangent.F.detach() - config.bounded(g)) ** 2)
    loss = w.exp() / point.x_t[0].numel() * squared - w
    return loss, {"tangent_norm": norm_per_sample(g).mean(), "adaptive_weight": w.detach().mean(), "warmup_r": r}
