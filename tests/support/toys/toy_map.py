"""Toy: a second time, and samplers of the method's own. G(x_t, t, s) goes from level t to any level s below it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from cmcore.diffusion.inputs import Input
from cmcore.diffusion.ode import Denoise
from cmcore.diffusion.precond import Denoiser, Labels, with_inputs
from cmcore.diffusion.settings import DiffusionConfig
from cmcore.methods.base import Batch, LossOut, Method, Nets, Progress, Traits
from cmcore.rng import Draws, NoiseSource
from cmcore.sample.base import Sampler
from cmcore.sample.settings import Sampling
from cmcore.tensors import expand_like, mean_per_sample


@dataclass(frozen=True, kw_only=True)
class Config:
    """Nothing to choose."""


def jump(denoiser: Any, x: Tensor, t: Tensor, s: Tensor, labels: Labels = None) -> Tensor:
    """s/t x + (1 - s/t) D(x, t, s)."""
    ratio = expand_like(s / t, x)
    return ratio * x + (1 - ratio) * denoiser(x, t, with_inputs(labels, s=s))


@dataclass(frozen=True)
class Jumps(Sampler):
    """Jumps between levels, the last to zero; `name` tells two ways of spacing them apart."""

    levels: tuple[float, ...]
    name: str  # pyright: ignore[reportIncompatibleVariableOverride]

    @property
    def nfe(self) -> int:
        return len(self.levels)

    @property
    def sigma_max(self) -> float:
        return self.levels[0]

    @property
    def noise_levels(self) -> tuple[float, ...]:
        return self.levels

    @torch.no_grad()
    def from_noise(self, denoiser: Denoise, x_T: Tensor, source: NoiseSource, labels: Labels = None) -> Tensor:
        x = x_T.double()
        for t, s in zip(self.levels, (*self.levels[1:], 0.0), strict=True):
            x = jump(denoiser, x, *(torch.full((len(x),), level, dtype=torch.float64) for level in (t, s)), labels)
        return x


@dataclass(frozen=True)
class ToyMap(Method):
    """||G(x_t, t, s) - x_s||^2 with the noise that made x_t."""

    config: Config
    diffusion: DiffusionConfig
    S: ClassVar[Input] = Input("s", "time")

    @property
    def traits(self) -> Traits:
        return Traits(inputs=(self.S,))

    def loss(self, nets: Nets, batch: Batch, progress: Progress, draws: Draws) -> LossOut:
        t = torch.exp(2 * draws.normal(stream="level", dtype=torch.float64))
        s = t * draws.uniform(stream="second")
        z = draws.normal(batch.x.shape[1:], stream="noise")
        x_t, x_s = (batch.x + expand_like(level, z) * z for level in (t, s))
        with draws.dropout():
            return LossOut(mean_per_sample((jump(nets.student, x_t, t, s, batch.labels) - x_s) ** 2), {})

    def model(self, denoiser: Denoiser) -> Denoise:
        """The jumps say where they go, so they ask the network itself."""
        return denoiser

    def samplers(self, sampling: Sampling) -> list[Sampler]:
        high = sampling.diffusion.sigma_max
        return [Jumps((high,), "jump"), Jumps((high, 1.0), "low"), Jumps((high, 5.0), "high")]

    def scan(self, sampling: Sampling, levels: Sequence[float]) -> list[Sampler]:
        return [Jumps((sampling.diffusion.sigma_max, level), "scan") for level in levels]


def build(config: Config, diffusion: DiffusionConfig) -> ToyMap:
    return ToyMap(config, diffusion)
