"""Samplers from the noise range of a workload."""

from cmcore.diffusion.grids import karras_grid, with_zero
from cmcore.diffusion.settings import DiffusionConfig
from cmcore.sample.fewstep import Multistep
from cmcore.sample.solvers import Heun


def ode_sampler(diffusion: DiffusionConfig, steps: int) -> Heun:
    """EDM's deterministic sampler with `steps` Heun steps: NFE = 2 steps - 1 (arXiv 2206.00364, Alg. 1)."""
    d = diffusion
    return Heun(with_zero(karras_grid(steps, d.sigma_min, d.sigma_max, d.rho)))


def few_step_sampler(diffusion: DiffusionConfig, *levels: float) -> Multistep:
    """One step from pure noise, then one more from every further level (arXiv 2303.01469, Alg. 1)."""
    return Multistep((diffusion.sigma_max, *levels), diffusion.sigma_min)
