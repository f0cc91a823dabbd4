"""Two states on one solution of a teacher's ODE, which consistency distillation compares."""

from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from cmcore.diffusion import ode
from cmcore.diffusion.guidance import Guided, Scales, draw_scales, with_scale
from cmcore.diffusion.ode import Denoise
from cmcore.diffusion.precond import Labels
from cmcore.rng import Draws
from cmcore.tensors import expand_like

Step = Callable[[Denoise, Tensor, Tensor, Tensor, Labels], Tensor]
"""A step of a solver in diffusion/ode.py: (denoiser, x, sigma, sigma_next, labels) -> x at sigma_next."""
SolverName = Literal["euler", "heun", "dpmpp_2s"]
STEPS: dict[SolverName, Step] = {"euler": ode.euler_step, "heun": ode.heun_step, "dpmpp_2s": ode.dpmpp_2s_step}


class TaughtPair(NamedTuple):
    """The states (B, ...) at t and, by the teacher's step, at r; the student's condition."""

    x_t: Tensor
    x_r: Tensor
    labels: Labels


def taught_pair(
    teacher: Denoise,
    solver: SolverName,
    x: Tensor,
    t: Tensor,
    r: Tensor,
    labels: Labels,
    guidance: Scales | None,
    draws: Draws,
    *,
    told: bool = True,
) -> TaughtPair:
    """x_t = x + t z, and one step of the teacher's ODE from there to r (arXiv 2303.01469, Alg. 2).

    Args:
        teacher: a diffusion model.
        solver: of its ODE.
        x: images (B, ...).
        t: their levels (B,).
        r: levels (B,) below.
        labels: of the images.
        guidance: range of the teacher's guidance scale, which is drawn for every image: the ODE is then LCM's augmented
            one (arXiv 2310.04378, sec. 4.2, where the scale is 1 + w).
        draws: of the step.
        told: whether the student's condition holds the scale.
    """
    z = draws.normal(x.shape[1:], stream="noise")
    x_t = x + expand_like(t, x) * z
    condition = labels
    if guidance is not None:
        s = draw_scales(guidance, draws)
        condition, teacher = with_scale(labels, s) if told else labels, Guided(teacher, s)
    with torch.no_grad():
        return TaughtPair(x_t, STEPS[solver](teacher, x_t, t, r, labels), condition)
