"""A sampler by what a user says of it: steps, levels, solver, guidance, a negative prompt."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any, get_args

from cmcore.diffusion.grids import karras_grid
from cmcore.diffusion.inputs import GUIDANCE
from cmcore.methods.base import Method
from cmcore.sample.base import Sampler
from cmcore.sample.guided import GuidedSampler
from cmcore.sample.presets import solver as preset
from cmcore.sample.settings import Sampling, SolverName

TWICE = ("heun", "heun_churn", "dpmpp_2s")  # solvers with two evaluations a step


def choose(
    method: Method,
    sampling: Sampling,
    *,
    steps: int = 0,
    levels: Sequence[float] = (),
    solver: str = "",
    guidance: float | None = None,
    labelled: bool = False,
) -> Sampler:
    """A sampler for models of a method.

    Args:
        method: the method.
        sampling: the settings of the run.
        steps: of an ODE solver, for a diffusion model; evaluations, for a few-step model. 0 for the first row's.
        levels: noise levels sigma of the steps after the first, descending, of a few-step model that adds noise in
            between. By default those of the row with as many steps, else of the Karras grid (EDM, Eq. 5).
        solver: of a diffusion model, by default Heun's.
        guidance: scale of classifier-free guidance, by default the run's.
        labelled: whether the network sees labels, classes or captions.

    Raises:
        ValueError: the method has no such sampler.
    """
    if steps < 0:
        raise ValueError(f"steps: expected at least 1, got {steps}")
    if guidance is not None:
        _check_guidance(method, guidance, labelled)
        sampling = replace(sampling, guidance=guidance)
    if method.traits.few_step:
        if solver:
            raise ValueError(f"solver: expected none, as the model is no diffusion model, got {solver!r}")
        return _few_step(method, sampling, steps, levels)
    if levels:
        raise ValueError(f"levels: expected none, as the model is a diffusion model, got {list(levels)}")
    return _ode(method, sampling, steps, solver)


def at_levels(sampler: Sampler, levels: Sequence[float]) -> Sampler:
    """The sampler with other noise levels, of those that have a choice."""
    if isinstance(sampler, GuidedSampler):
        return replace(sampler, inner=at_levels(sampler.inner, levels))
    changed: Any = sampler
    return replace(changed, levels=tuple(levels))


def check_negative(method: Method, sampler: Sampler | None, *, labelled: bool) -> GuidedSampler:
    """The sampler, where it takes a negative prompt: each evaluation is guided when sampled.

    Args:
        method: of the model.
        sampler: of such models, None for evaluations without guidance.
        labelled: whether the network sees labels, classes or captions.

    Raises:
        ValueError: a sampler, network or scale for which it has no meaning.
    """
    if isinstance(sampler, GuidedSampler) and not sampler.learned:
        return sampler
    traits = method.traits
    low, high = traits.guidance or (0.0, 1.0)
    if not labelled:
        why = "none, as the network sees no labels"
    elif GUIDANCE in traits.inputs:
        why = "none, as the network is told the guidance scale, and has learned it without negative prompts"
    elif low == high:
        why = f"none, as the guidance scale {low} is part of the weights"
    elif traits.few_step and traits.guidance is None:
        why = "none, as the model has learned no guidance"
    else:
        why = "a guidance scale other than 1 beside it, as it has no effect without guidance"
    raise ValueError(f"negative: expected {why}")


def _few_step(method: Method, sampling: Sampling, steps: int, levels: Sequence[float]) -> Sampler:
    d, rows = sampling.diffusion, method.samplers(sampling)
    by_steps = {_steps(row): row for row in reversed(rows)}
    if levels and steps not in (0, len(levels) + 1):
        raise ValueError(f"levels: expected {steps - 1}, one for every step after the first, got {list(levels)}")
    if not levels:
        if steps == 0:
            return rows[0]
        if steps in by_steps:
            return by_steps[steps]
    wanted = list(levels) or karras_grid(steps + 1, d.sigma_min, d.sigma_max, d.rho)[1:-1].tolist()
    if not method.scan(sampling, [d.sigma_max * (1 - 1e-6)]):
        there = f"expected one of {', '.join(map(str, sorted(by_steps)))}"
        if levels:
            raise ValueError(
                f"levels: expected none, as the method's own are fixed, got {list(levels)}; steps: {there}"
            )
        raise ValueError(f"steps: {there}, got {steps}")
    descending = all(a > b for a, b in pairwise([d.sigma_max, *wanted, d.sigma_min]))
    tried = method.scan(sampling, wanted) if descending else []
    if len(tried) != len(wanted):
        raise ValueError(
            f"levels: expected descending levels that the model has learned, between {d.sigma_max} and {d.sigma_min}, "
            f"got {wanted}"
        )
    return at_levels(tried[0], (d.sigma_max, *wanted))


def _steps(sampler: Sampler) -> int:
    return _steps(sampler.inner) if isinstance(sampler, GuidedSampler) else sampler.nfe


def _ode(method: Method, sampling: Sampling, steps: int, solver: str) -> Sampler:
    names = get_args(SolverName)
    if solver and solver not in names:
        raise ValueError(f"solver: expected one of {', '.join(names)}, got {solver!r}")
    if not (steps or solver):
        return method.samplers(sampling)[0]
    name: Any = solver or "heun"
    steps, least = steps or sampling.steps, 1 if name == "euler_linear" else 2
    if steps < least:
        raise ValueError(f"steps: expected at least {least} for {name}, got {steps}")
    found = preset(sampling.diffusion, name, 2 * steps - 1 if name in TWICE else steps)
    return method.guided(found, sampling)


def _check_guidance(method: Method, s: float, labelled: bool) -> None:
    traits = method.traits
    if s == 1:
        return
    if not labelled:
        raise ValueError(f"guidance: expected 1, as the network sees no labels, got {s}")
    if traits.few_step and traits.guidance is None:
        raise ValueError(f"guidance: expected 1, as the model has learned no scales, got {s}")
    low, high = traits.guidance or (0.0, float("inf"))
    if not low <= s <= high:
        raise ValueError(f"guidance: expected a scale from {low} to {high}, got {s}")
