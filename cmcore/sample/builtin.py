"""Sampling of models that were trained at one guidance scale, which the name of the sampler then says."""

from dataclasses import dataclass

from cmcore.diffusion.ode import Denoise
from cmcore.sample.guided import GuidedSampler


@dataclass(frozen=True, eq=False)
class BuiltIn(GuidedSampler):
    """Another sampler as it is: the scale `s` is part of the weights, and no input of the network."""

    learned: bool = True

    def function(self, denoiser: Denoise) -> Denoise:
        """The denoiser as it is."""
        return denoiser
