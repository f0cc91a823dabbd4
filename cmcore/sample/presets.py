"""Samplers from the noise range of a workload."""

from itertools import product

from cmcore.diffusion.grids import karras_grid, linear_grid, with_zero
from cmcore.diffusion.settings import DiffusionConfig
from cmcore.sample.base import Sampler
from cmcore.sample.fewstep import Multistep
from cmcore.sample.settings import Sampling, SolverName
from cmcore.sample.solvers import DPMSolverPP2M, DPMSolverPP2S, Euler, Heun, LinearEuler

CHURN = {"S_churn": 40.0, "S_min": 0.05, "S_max": 50.0, "S_noise": 1.003}
"""EDM's stochastic setting for ImageNet 64 (arXiv 2206.00364, Table 5)."""


def ode_sampler(diffusion: DiffusionConfig, steps: int) -> Heun:
    """EDM's deterministic sampler with `steps` Heun steps: NFE = 2 steps - 1 (arXiv 2206.00364, Alg. 1)."""
    d = diffusion
    return Heun(with_zero(karras_grid(steps, d.sigma_min, d.sigma_max, d.rho)))


def solver(diffusion: DiffusionConfig, name: SolverName, nfe: int) -> Sampler:
    """A solver with as many steps as `nfe` evaluations (at least 3) allow, the last one, of order 1, to clean images.

    Solvers with two evaluations a step take an odd number in all. "euler_linear" takes any number from 1 on.
    """
    if name == "euler_linear":
        return LinearEuler(linear_grid(nfe, 0.0, diffusion.sigma_max))
    d, twice = diffusion, name not in ("euler", "dpmpp_2m")
    grid = with_zero(karras_grid((nfe + 1) // 2 if twice else nfe, d.sigma_min, d.sigma_max, d.rho))
    if name == "heun_churn":
        return Heun(grid, **CHURN)
    return {"euler": Euler, "heun": Heun, "dpmpp_2m": DPMSolverPP2M, "dpmpp_2s": DPMSolverPP2S}[name](grid)


def diffusion_samplers(sampling: Sampling) -> list[Sampler]:
    """EDM's sampler, then the further solvers, without those that would stand twice."""
    d = sampling.diffusion
    rows: dict[tuple[int, str], Sampler] = {}
    for row in (ode_sampler(d, sampling.steps), *(solver(d, *row) for row in product(sampling.solvers, sampling.nfe))):
        rows.setdefault((row.nfe, row.name), row)
    return list(rows.values())


def few_step_sampler(diffusion: DiffusionConfig, *levels: float) -> Multistep:
    """One step from pure noise, then one more from every further level (arXiv 2303.01469, Alg. 1)."""
    return Multistep((diffusion.sigma_max, *levels), diffusion.sigma_min)
