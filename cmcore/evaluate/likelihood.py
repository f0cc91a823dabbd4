"""Likelihood of images under a diffusion model, in bits per dimension, by the probability-flow ODE.

log p(x) = log N(x_T; 0, sigma_max^2) + integral of div v dl along dx/dl = v = x - D(x, e^l), l = ln sigma from
ln sigma_min to ln sigma_max   (Song et al., arXiv 2011.13456, App. D.2, in VE time)

The divergence is estimated by Hutchinson's e^T (dv/dx) e with random signs e: without bias, and without variance where
the Jacobian is diagonal.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from cmcore.diffusion.ode import Denoise
from cmcore.diffusion.precond import Labels
from cmcore.diffusion.settings import DiffusionConfig
from cmcore.evaluate.records import Measured
from cmcore.rng import NoiseSource, derive_seed
from cmcore.tensors import sum_per_sample

GREYS = 127.5  # grey levels of a pixel in one unit of [-1, 1]


def dequantised(images: Tensor, uniform: Tensor) -> Tensor:
    """uint8 images and uniform numbers in [0, 1), both (B, C, H, W), to float64 points spread over their grey level.

    Uniform dequantisation, centred where `to_float` puts the level: training saw the centres.
    """
    return (images.double() + uniform.double() - 0.5) / GREYS - 1


def log_density(
    denoiser: Denoise, x: Tensor, signs: Tensor, diffusion: DiffusionConfig, steps: int, labels: Labels = None
) -> Tensor:
    """Natural logarithm of the density at sigma_min of the model's samples, of points x (B, C, H, W): (B,) float64.

    Args:
        denoiser: a diffusion model in eval mode.
        x: the points, float64.
        signs: e, +1 and -1, like x.
        diffusion: the noise range.
        steps: of the classical Runge-Kutta method, order 4, in l; four evaluations, with a gradient by x, for each.
        labels: of a conditional model.
    """
    l = torch.full((len(x),), math.log(diffusion.sigma_min), dtype=torch.float64, device=x.device)
    h = math.log(diffusion.sigma_max / diffusion.sigma_min) / steps
    gained = torch.zeros_like(l)

    def slope(x: Tensor, l: Tensor) -> tuple[Tensor, Tensor]:
        return _slope(denoiser, x, signs, l.exp(), labels)

    for _ in range(steps):
        v1, div1 = slope(x, l)
        v2, div2 = slope(x + h / 2 * v1, l + h / 2)
        v3, div3 = slope(x + h / 2 * v2, l + h / 2)
        v4, div4 = slope(x + h * v3, l + h)
        x, l = x + h / 6 * (v1 + 2 * v2 + 2 * v3 + v4), l + h
        gained = gained + h / 6 * (div1 + 2 * div2 + 2 * div3 + div4)
    D, variance = x[0].numel(), diffusion.sigma_max**2
    return gained - sum_per_sample(x**2) / (2 * variance) - D / 2 * math.log(2 * math.pi * variance)


def _slope(denoiser: Denoise, x: Tensor, signs: Tensor, sigma: Tensor, labels: Labels) -> tuple[Tensor, Tensor]:
    """v and the estimate of its divergence (B,)."""
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        v = x - denoiser(x, sigma, labels)
        (product,) = torch.autograd.grad((v * signs).sum(), x)
    return v.detach(), sum_per_sample(product * signs)


def bits_per_dimension(
    denoiser: Denoise,
    images: Tensor,
    diffusion: DiffusionConfig,
    *,
    steps: int,
    seed: int,
    indices: Sequence[int] | None = None,
    labels: Labels = None,
) -> Tensor:
    """Bits per dimension of uint8 images (B, C, H, W): (B,) float64, on average an upper bound of those of the pixels.

    Noise and signs of an image depend on the seed and its number in `indices`, by default its place, alone.
    """
    source = NoiseSource(derive_seed(seed, "likelihood"), indices or range(len(images)), images.device)
    uniform = torch.special.ndtr(source.normal(images.shape[1:]))
    signs = torch.where(source.normal(images.shape[1:]) < 0, -1.0, 1.0).double()
    x = dequantised(images, uniform)
    return -log_density(denoiser, x, signs, diffusion, steps, labels) / (images[0].numel() * math.log(2)) + math.log2(
        GREYS
    )


def measured(bits: Tensor) -> Measured:
    """The mean of bits per dimension (B,), with its standard error over images."""
    if len(bits) < 2:
        raise ValueError(f"likelihood: expected at least 2 images, got {len(bits)}")
    return Measured(float(bits.mean()), float(bits.std()) / len(bits) ** 0.5, "images")
