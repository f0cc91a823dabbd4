"""Maps between any two noise levels: G(x, t, s) = s/t x + (1 - s/t) D(x, t; s), of a denoiser that sees s.

It is Euler's step from t to s under D, the identity at s = t. The form is that of CTM (arXiv 2310.02279, Eq. 9), and of
IMM (arXiv 2503.07565) with EDM's scalings in VE time.
"""

from dataclasses import dataclass

from torch import Tensor, full_like

from cmcore.diffusion import ode
from cmcore.diffusion.inputs import Input
from cmcore.diffusion.ode import Denoise
from cmcore.diffusion.precond import Labels, as_condition, with_inputs
from cmcore.dual import value_of

SECOND_TIME = Input("s", "time")
"""The level where a jump ends."""


def jump(denoiser: Denoise, x: Tensor, t: Tensor, s: Tensor, labels: Labels = None) -> Tensor:
    """G(x, t, s) for states x (B, C, H, W) and levels t, s (B,) with s <= t."""
    return ode.euler_step(denoiser, x, t, s, with_inputs(labels, s=s))


@dataclass(frozen=True, eq=False)
class Jumps:
    """A map between levels as a function that samplers call: to the level s of the condition, without one to `end`."""

    denoiser: Denoise
    end: float

    def __call__(self, x: Tensor, sigma: Tensor, labels: Labels = None) -> Tensor:
        """The state (B, C, H, W) at s, or at `end`, of the state x at sigma (B,)."""
        s = as_condition(labels).inputs.get(SECOND_TIME.name)
        return jump(self.denoiser, x, sigma, full_like(sigma, self.end) if s is None else value_of(s), labels)
