"""Zero-shot editing with a consistency model (arXiv 2303.01469, Algorithm 4 and App. D). No training, no gradient.

Multistep sampling, with the known part of the image restored after each f. The `Multistep` sampler holds the levels: in
the paper the 40-level Karras grid, and (5.38, 2.24) for strokes; its code clamps every f (clamp=True). Images are
(B, C, H, W) in [-1, 1]; results are float64.
"""

import torch
from torch import Tensor

from cmcore.diffusion.ode import Denoise
from cmcore.rng import NoiseSource
from cmcore.sample.fewstep import Multistep
from cmcore.sample.known import Known, known_grey, known_means, known_pixels


def restore(
    sampler: Multistep, denoiser: Denoise, known: Known, source: NoiseSource, labels: Tensor | None = None
) -> Tensor:
    """Algorithm 4: sample images that agree with the known part, starting from it with zeros for the unknown."""
    y = known.shown()
    x = y + sampler.sigma_max * source.normal(y.shape[1:])
    return sampler.refine(denoiser, x, source, labels, known.project)


def inpaint(
    sampler: Multistep,
    denoiser: Denoise,
    images: Tensor,
    missing: Tensor,
    source: NoiseSource,
    labels: Tensor | None = None,
) -> Tensor:
    """Fill in the pixels where `missing` (bool, broadcastable) is True."""
    return restore(sampler, denoiser, known_pixels(images, missing), source, labels)


def colourise(
    sampler: Multistep, denoiser: Denoise, grey: Tensor, source: NoiseSource, labels: Tensor | None = None
) -> Tensor:
    """Colour images (B, 3, H, W) whose LUMA-weighted sum of channels is grey (B, 1, H, W)."""
    return restore(sampler, denoiser, known_grey(grey), source, labels)


def super_resolve(
    sampler: Multistep,
    denoiser: Denoise,
    low: Tensor,
    factor: int,
    source: NoiseSource,
    labels: Tensor | None = None,
) -> Tensor:
    """Images (B, C, factor h, factor w) whose patch means are low (B, C, h, w)."""
    return restore(sampler, denoiser, known_means(low, factor), source, labels)


def stroke(
    sampler: Multistep, denoiser: Denoise, painting: Tensor, source: NoiseSource, labels: Tensor | None = None
) -> Tensor:
    """Images guided by a painting (B, C, H, W): with noise it replaces the initial noise; nothing is held fixed."""
    x = painting.double() + sampler.sigma_max * source.normal(painting.shape[1:])
    return sampler.refine(denoiser, x, source, labels)


@torch.no_grad()
def denoise(denoiser: Denoise, x: Tensor, sigma: float, labels: Tensor | None = None) -> Tensor:
    """Remove noise of standard deviation sigma from x in a single evaluation."""
    x = x.double()
    return denoiser(x, torch.full((len(x),), sigma, dtype=torch.float64, device=x.device), labels)


@torch.no_grad()
def interpolate(
    denoiser: Denoise, z_a: Tensor, z_b: Tensor, fractions: Tensor, sigma_max: float, labels: Tensor | None = None
) -> Tensor:
    """One-step images (B, C, H, W) from blends of two unit noises (C, H, W), at fractions (B,) of the way."""
    z = torch.stack([slerp(z_a.double(), z_b.double(), float(fraction)) for fraction in fractions])
    return denoise(denoiser, sigma_max * z, sigma_max, labels)


def slerp(a: Tensor, b: Tensor, fraction: float) -> Tensor:
    """Spherical interpolation from a to b, by the angle between them, which preserves the norm of noise."""
    cosine = (a * b).sum() / (a.norm() * b.norm())
    angle = torch.arccos(cosine.clamp(-1, 1))
    if angle.sin() < 1e-6:  # parallel: the formula is 0/0, and its limit is the straight line
        return (1 - fraction) * a + fraction * b
    return (torch.sin((1 - fraction) * angle) * a + torch.sin(fraction * angle) * b) / torch.sin(angle)
