"""Jumps with a network that knows how far each goes: the maps of shortcut models, MeanFlow and flow maps."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

import torch
from torch import Tensor

from cmcore.diffusion.grids import linear_grid
from cmcore.diffusion.ode import Denoise, euler_step
from cmcore.diffusion.precond import Labels, with_inputs
from cmcore.diffusion.settings import DiffusionConfig
from cmcore.rng import NoiseSource
from cmcore.sample.solvers import GridSampler


@dataclass(frozen=True, eq=False)
class FlowMap(GridSampler):
    """x_r = x_t - (t - r) u: Euler's step, in which the average velocity u = (x_t - D)/t depends on the end r too.

    Deterministic: no noise is added between jumps.
    """

    tell: Callable[[Tensor, Tensor], Mapping[str, Tensor]]
    """Levels (B,) before and after a jump -> the network's further inputs, (B,) by name."""
    name: ClassVar[str] = "flow_map"

    @torch.no_grad()
    def from_noise(self, denoiser: Denoise, x_T: Tensor, source: NoiseSource, labels: Labels = None) -> Tensor:
        del source  # deterministic
        x = x_T.double()
        for sigma, sigma_next in pairwise(self.levels(x)):
            inputs = with_inputs(labels, **self.tell(sigma, sigma_next))
            x = euler_step(denoiser, x, sigma, sigma_next, inputs)
        return x


def linear_jumps(n: int, diffusion: DiffusionConfig, name: str) -> FlowMap:
    """n jumps to sigma_min, equally long on the linear path, for a network whose input `name` is their end."""
    return FlowMap(linear_grid(n, diffusion.sigma_min, diffusion.sigma_max), lambda _, end: {name: end})
