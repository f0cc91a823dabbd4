"""Single steps of solvers of the probability-flow ODE in VE time, dx/dsigma = (x - D(x, sigma)) / sigma.

Levels are per sample, (B,): a training step advances every image from its own sigma to its own sigma_next. Level
arithmetic stays in the precision of the levels (float64), the state in the dtype of x.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from cmcore.diffusion.precond import Labels
from cmcore.tensors import expand_like

Denoise = Callable[[Tensor, Tensor, Any], Tensor]
"""(x (B, ...), sigma (B,), labels) -> the prediction of the clean image: a `Denoiser`, or an oracle."""


def velocity(denoiser: Denoise, x: Tensor, sigma: Tensor, labels: Labels = None) -> Tensor:
    """dx/dsigma at (x, sigma) (EDM, arXiv 2206.00364, Algorithm 1, line 4)."""
    return (x - denoiser(x, sigma, labels)) / expand_like(sigma, x)


def euler_step(denoiser: Denoise, x: Tensor, sigma: Tensor, sigma_next: Tensor, labels: Labels = None) -> Tensor:
    """Euler's step of order 1 from sigma to sigma_next, which may be 0: that gives D(x, sigma). One evaluation."""
    return x + expand_like(sigma_next - sigma, x) * velocity(denoiser, x, sigma, labels)


def euler_prediction(x: Tensor, x_next: Tensor, sigma: Tensor, sigma_next: Tensor) -> Tensor:
    """The prediction with which Euler's step from x at sigma lands at x_next: the step's inverse."""
    return x + expand_like(sigma / (sigma - sigma_next), x) * (x_next - x)


def heun_step(denoiser: Denoise, x: Tensor, sigma: Tensor, sigma_next: Tensor, labels: Labels = None) -> Tensor:
    """Heun's step of order 2 (EDM, arXiv 2206.00364, Algorithm 1, lines 4-8). Two evaluations.

    A sample whose sigma_next is 0, where the velocity is undefined, takes Euler's step; if that is every sample,
    `euler_step` saves the second evaluation.
    """
    step = expand_like(sigma_next - sigma, x)
    d = velocity(denoiser, x, sigma, labels)
    x_euler = x + step * d
    landed = sigma_next == 0
    d_next = velocity(denoiser, x_euler, torch.where(landed, sigma, sigma_next), labels)
    x_heun = x + step * (d + d_next) / 2
    return torch.where(landed.reshape(step.shape), x_euler, x_heun)


def dpmpp_2s_step(denoiser: Denoise, x: Tensor, sigma: Tensor, sigma_next: Tensor, labels: Labels = None) -> Tensor:
    """DPM-Solver++(2S), order 2 (arXiv 2211.01095, Algorithm 1 with r = 1/2) in VE form. Two evaluations.

    The prediction of the whole step is taken half-way in lambda = -ln sigma, at sqrt(sigma sigma_next), which has to be
    above 0: a step to 0 is Euler's.
    """
    middle = (sigma * sigma_next).sqrt()
    D = denoiser(_towards(x, denoiser(x, sigma, labels), sigma, middle), middle, labels)
    return _towards(x, D, sigma, sigma_next)


def dpmpp_2m_coefficient(sigma_prev: Tensor, sigma: Tensor, sigma_next: Tensor) -> Tensor:
    """1/(2r) of DPM-Solver++(2M), r = h_prev/h with h the step in lambda = -ln sigma; 0 where sigma_next is 0."""
    # lambda is infinite at 0, where the step ends on the denoised image without extrapolation.
    h = (sigma / torch.where(sigma_next == 0, sigma, sigma_next)).log()
    return h / (2 * (sigma_prev / sigma).log())


def dpmpp_2m_step(
    x: Tensor, D: Tensor, D_prev: Tensor | None, sigma_prev: Tensor | None, sigma: Tensor, sigma_next: Tensor
) -> Tensor:
    """DPM-Solver++(2M), order 2 (arXiv 2211.01095, Algorithm 2) in VE form, from given predictions.

    D is the prediction at (x, sigma), D_prev the one before at sigma_prev; without these two it is Euler's step.
    """
    if D_prev is not None and sigma_prev is not None:
        c = expand_like(dpmpp_2m_coefficient(sigma_prev, sigma, sigma_next), x)
        D = (1 + c) * D - c * D_prev
    return _towards(x, D, sigma, sigma_next)


def _towards(x: Tensor, D: Tensor, sigma: Tensor, sigma_next: Tensor) -> Tensor:
    """The exact step under a prediction D that does not change on the way."""
    ratio = expand_like(sigma_next / sigma, x)
    return ratio * x + (1 - ratio) * D
