"""Sampling under guidance: any sampler, with each evaluation guided."""

from dataclasses import dataclass

from torch import Tensor

from cmcore.diffusion.guidance import Guided, at_scale
from cmcore.diffusion.ode import Denoise
from cmcore.rng import NoiseSource
from cmcore.sample.base import Sampler


@dataclass(frozen=True, eq=False)
class GuidedSampler(Sampler):
    """Another sampler with the scale s of classifier-free guidance; s = 1 is none (see diffusion/guidance.py).

    Args:
        inner: the sampler.
        s: the scale.
        learned: whether the scale is an input of the model. Any other is evaluated with the labels and without them,
            which counts as two evaluations, as in the papers.
    """

    inner: Sampler
    s: float
    learned: bool = False

    @property
    def name(self) -> str:  # pyright: ignore[reportIncompatibleVariableOverride]
        return f"{self.inner.name}, guidance {self.s}"

    @property
    def nfe(self) -> int:
        return self.inner.nfe * (1 if self.learned else 2)

    @property
    def noise_levels(self) -> tuple[float, ...]:
        return self.inner.noise_levels

    @property
    def sigma_max(self) -> float:
        return self.inner.sigma_max

    def from_noise(self, denoiser: Denoise, x_T: Tensor, source: NoiseSource, labels: Tensor | None = None) -> Tensor:
        guided = at_scale(denoiser, self.s) if self.learned else Guided(denoiser, self.s)
        return self.inner.from_noise(guided, x_T, source, labels)
