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
        negative: a label () or a row of words (L,), in the place of none in the second evaluation.
    """

    inner: Sampler
    s: float
    learned: bool = False
    negative: Tensor | None = None

    @property
    def name(self) -> str:  # pyright: ignore[reportIncompatibleVariableOverride]
        return f"{self.inner.name}, guidance {self.s}"

    @property
    def nfe(self) -> int:
        return self.inner.nfe * self.evaluations

    @property
    def evaluations(self) -> int:
        """For each of the inner sampler."""
        return 1 if self.learned else 2

    @property
    def noise_levels(self) -> tuple[float, ...]:
        return self.inner.noise_levels

    @property
    def sigma_max(self) -> float:
        return self.inner.sigma_max

    def from_noise(self, denoiser: Denoise, x_T: Tensor, source: NoiseSource, labels: Tensor | None = None) -> Tensor:
        return self.inner.from_noise(self.function(denoiser), x_T, source, labels)

    def function(self, denoiser: Denoise) -> Denoise:
        """The guided denoiser, which the inner sampler evaluates."""
        return at_scale(denoiser, self.s) if self.learned else Guided(denoiser, self.s, self.negative)
