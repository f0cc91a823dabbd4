"""Sampling of models that were trained at one guidance scale, which the name of the sampler then says."""

from dataclasses import dataclass

from torch import Tensor

from cmcore.diffusion.ode import Denoise
from cmcore.rng import NoiseSource
from cmcore.sample.guided import GuidedSampler


@dataclass(frozen=True, eq=False)
class BuiltIn(GuidedSampler):
    """Another sampler as it is: the scale `s` is part of the weights, and no input of the network."""

    learned: bool = True

    def from_noise(self, denoiser: Denoise, x_T: Tensor, source: NoiseSource, labels: Tensor | None = None) -> Tensor:
        return self.inner.from_noise(denoiser, x_T, source, labels)
