"""The samplers of a run: the ODE solver of a diffusion model, few steps of any other."""

from cmcore.assemble.project import Run, build_method
from cmcore.diffusion.grids import karras_grid, with_zero
from cmcore.diffusion.settings import DiffusionConfig
from cmcore.sample.base import Sampler
from cmcore.sample.fewstep import Multistep
from cmcore.sample.guided import GuidedSampler
from cmcore.sample.solvers import Heun


def ode_sampler(diffusion: DiffusionConfig, steps: int) -> Heun:
    """EDM's deterministic sampler with `steps` Heun steps: NFE = 2 steps - 1 (arXiv 2206.00364, Alg. 1)."""
    d = diffusion
    return Heun(with_zero(karras_grid(steps, d.sigma_min, d.sigma_max, d.rho)))


def few_step_sampler(diffusion: DiffusionConfig, *levels: float) -> Multistep:
    """One step from pure noise, then one more from every further level."""
    return Multistep((diffusion.sigma_max, *levels), diffusion.sigma_min)


def guided(run: Run, sampler: Sampler) -> Sampler:
    """The sampler with the run's guidance; the very same without."""
    s = run.sample.guidance
    return sampler if s == 1 else GuidedSampler(sampler, s, learned=build_method(run).few_step)


def quickest_sampler(run: Run, diffusion: DiffusionConfig, steps: int) -> Sampler:
    """The sampler of the least cost that suits the run's model: one step, or `steps` of the ODE solver."""
    few_step = build_method(run).few_step
    return guided(run, few_step_sampler(diffusion) if few_step else ode_sampler(diffusion, steps))


def samplers(run: Run, diffusion: DiffusionConfig, steps: int) -> list[Sampler]:
    """The samplers behind the tables: the ODE solver for a diffusion model, one and two steps for the others."""
    first = quickest_sampler(run, diffusion, steps)
    if not build_method(run).few_step:
        return [first]
    return [first, guided(run, few_step_sampler(diffusion, run.sample.two_step))]
