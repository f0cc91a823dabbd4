"""Editing with a diffusion model by replacement (arXiv 2011.13456, App. I.2): the baseline of zero-shot editing."""

from itertools import pairwise

import torch
from torch import Tensor

from cmcore.diffusion.ode import Denoise, euler_step, heun_step
from cmcore.rng import NoiseSource
from cmcore.sample.known import Known
from cmcore.sample.solvers import Heun


@torch.no_grad()
def impute(sampler: Heun, denoiser: Denoise, known: Known, source: NoiseSource, labels: Tensor | None = None) -> Tensor:
    """Images (B, C, H, W) in float64 that agree with the known part.

    Before every step the known coefficients become those of the known part under fresh noise of the step's level; at
    the end they become the known ones. The steps are the sampler's, so NFE is too.
    """
    shape = known.inverse(known.coefficients).shape[1:]
    x = sampler.sigma_max * source.normal(shape)
    levels = sampler.levels(x)
    for sigma, sigma_next in pairwise(levels):
        x = known.noised(float(sigma[0]) * source.normal(shape)).project(x)
        step = euler_step if float(sigma_next[0]) == 0 else heun_step
        x = step(denoiser, x, sigma, sigma_next, labels)
    return known.project(x)
