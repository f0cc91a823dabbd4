"""Zero-shot editing with any model that knows all noise levels: consistency functions, and diffusion models."""

from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor

from cmcore.assemble.results import TrainedRun
from cmcore.diffusion.grids import karras_grid, with_zero
from cmcore.methods.base import Method
from cmcore.rng import NoiseSource
from cmcore.sample import edit
from cmcore.sample.base import Sampler
from cmcore.sample.fewstep import Multistep
from cmcore.sample.guided import GuidedSampler
from cmcore.sample.imputation import impute
from cmcore.sample.known import Known, grey, known_grey, known_means, known_pixels
from cmcore.sample.presets import ode_sampler
from cmcore.sample.settings import Sampling
from cmcore.sample.solvers import Heun

Task = Literal["inpaint", "colourise", "super-resolution", "stroke", "denoise", "interpolate"]
STROKE = (5.38, 2.24)  # levels of arXiv 2303.01469, App. D
STEPS = 40  # of restoring, there


def known_part(
    task: Task, images: Tensor, *, missing: Tensor | None = None, factor: int = 2, resolution: int = 0
) -> Known:
    """The known part that a task leaves of images (B, C, H, W) in [-1, 1].

    Args:
        task: inpaint, colourise or super-resolution.
        images: whole images, of which the task takes away; or what it starts from: grey (B, 1, H, W) for
            colourisation, small images for super-resolution.
        missing: bool, broadcasts: the pixels that inpainting fills in.
        factor: of super-resolution of whole images, or what brings small ones to `resolution`.
        resolution: of the model.

    Raises:
        ValueError: the images do not suit the task.
    """
    if task == "inpaint":
        if missing is None:
            raise ValueError("mask: expected one for inpainting, white where pixels are missing, got none")
        return known_pixels(images, missing)
    if task == "colourise":
        return known_grey(images if images.shape[1] == 1 else grey(images))
    if images.shape[-1] == resolution:
        if factor < 2 or resolution % factor:
            raise ValueError(f"factor: expected a divisor of {resolution}, at least 2, got {factor}")
        images = torch.nn.functional.avg_pool2d(images.double(), factor)
    if resolution % images.shape[-1]:
        raise ValueError(f"image: expected a side that divides {resolution}, got {images.shape[-1]}")
    return known_means(images, resolution // images.shape[-1])


def restore(
    run: TrainedRun, known: Known, rows: Sequence[int], *, steps: int = STEPS, seed: int = 0,
    labels: Tensor | None = None, sampler: Sampler | None = None,
) -> tuple[Tensor, int]:  # fmt: skip
    """Images that agree with the known part, and the number of function evaluations.

    A consistency function restores by Algorithm 4 of arXiv 2303.01469 through `steps` levels of the Karras grid, as
    far as it has learned them; a diffusion model by replacement with at most as many evaluations.

    Args:
        run: the model.
        known: of the images.
        rows: the numbers of the images (B,), by which each has its own noise.
        steps: evaluations, of which each is two under guidance that was not learned.
        seed: of the noise.
        labels: (B,), of a conditional network.
        sampler: whose guidance each evaluation has; by default none.

    Returns:
        float64 (B, C, H, W) on the model's device, the known part in it to rounding; and the NFE.

    Raises:
        ValueError: the model is none of both, or there are too few steps.
    """
    source, f, each = NoiseSource(seed, rows, run.device), function(run, sampler), evaluations(sampler)
    if not run.method.traits.few_step:
        if steps < 3:
            raise ValueError(f"steps: expected at least 3 for a diffusion model, got {steps}")
        ode = ode_sampler(run.model.diffusion, (steps + 1) // 2)
        return impute(ode, f, known, source, labels), each * ode.nfe
    multistep = Multistep(levels(run, steps), run.model.diffusion.sigma_min, clamp=True)
    return edit.restore(multistep, f, known, source, labels), each * multistep.nfe


def can_restore(method: Method, sampling: Sampling) -> bool:
    """Whether it makes a diffusion model, or a few-step model whose steps may start at any level."""
    return not method.traits.few_step or bool(method.scan(sampling, [sampling.diffusion.sigma_max * (1 - 1e-6)]))


def function(run: TrainedRun, sampler: Sampler | None = None) -> Callable[..., Tensor]:
    """The model as a function of image and noise level, under the guidance of a sampler.

    A ValueError says that it knows some levels alone.
    """
    if not can_restore(run.method, run.sampling):
        raise ValueError(
            f"{run.name}: expected a diffusion model, or a method whose steps may start at any level, to edit with"
        )
    f = run.method.model(run.model.denoiser)
    return sampler.function(f) if isinstance(sampler, GuidedSampler) else f


def evaluations(sampler: Sampler | None) -> int:
    """Of the network, for each of the function under the guidance of a sampler."""
    return sampler.evaluations if isinstance(sampler, GuidedSampler) else 1


def levels(run: TrainedRun, steps: int, start: float = 0.0) -> tuple[float, ...]:
    """The highest `steps` levels of a Karras grid from `start`, by default sigma_max, that the model has learned."""
    d = run.model.diffusion
    if steps < 1:
        raise ValueError(f"steps: expected at least 1, got {steps}")
    first, *rest = karras_grid(steps + 1, d.sigma_min, start or d.sigma_max, d.rho)[:-1].tolist()
    return first, *(level for level in rest if run.method.scan(run.sampling, [level]))


def stroke(
    run: TrainedRun, painting: Tensor, *, sigma: float = 0.0, steps: int = 0, seed: int = 0,
    labels: Tensor | None = None, sampler: Sampler | None = None,
) -> tuple[Tensor, int]:  # fmt: skip
    """Images guided by a painting (B, C, H, W), and the NFE.

    A consistency function takes two steps from `sigma`, in the proportion of arXiv 2303.01469, App. D, or `steps` of
    the Karras grid; a diffusion model solves its ODE from there (SDEdit, arXiv 2108.01073). Each evaluation has the
    guidance of `sampler`, by default none.
    """
    d, f, each = run.model.diffusion, function(run, sampler), evaluations(sampler)
    sigma = sigma or min(STROKE[0], d.sigma_max / 2)
    _inside(sigma, run)
    source = NoiseSource(seed, range(len(painting)), run.device)
    if run.method.traits.few_step:
        through = levels(run, steps, sigma) if steps else (sigma, sigma * STROKE[1] / STROKE[0])
        multistep = Multistep(through, d.sigma_min, clamp=True)
        return edit.stroke(multistep, f, painting, source, labels), each * multistep.nfe
    heun = Heun(with_zero(karras_grid(max(2, (steps + 1) // 2 or 9), d.sigma_min, sigma, d.rho)))
    x = painting.double() + sigma * source.normal(painting.shape[1:])
    return heun.from_noise(f, x, source, labels), each * heun.nfe


def denoise(
    run: TrainedRun, noisy: Tensor, sigma: float, labels: Tensor | None = None, sampler: Sampler | None = None
) -> tuple[Tensor, int]:
    """Remove noise of standard deviation sigma in one step, and the NFE: a sample, or of a diffusion model the mean.

    The step has the guidance of `sampler`, by default none.
    """
    _inside(sigma, run)
    return edit.denoise(function(run, sampler), noisy, sigma, labels), evaluations(sampler)


def interpolate(
    run: TrainedRun, seeds: Sequence[int], count: int, *, label: Tensor | None = None, sampler: Sampler | None = None
) -> tuple[Tensor, int]:
    """Images (count, C, H, W) on the way between the noises of two seeds, by the run's first sampler; and the NFE.

    All have one label, (1,) or a row of words (1, L).
    """
    sampler = sampler or run.row()
    a, b = (NoiseSource(seed, [0], run.device).normal(run.shape)[0] for seed in seeds)
    x = torch.stack([edit.slerp(a, b, index / max(1, count - 1)) for index in range(count)])
    labels = None if label is None else label.to(run.device).expand(count, *label.shape[1:])
    # Later noise is the same for every image, so that it breaks no path.
    later = NoiseSource(seeds[0], [1] * count, run.device)
    return sampler.from_noise(run.function(sampler), sampler.sigma_max * x, later, labels), sampler.nfe


def _inside(sigma: float, run: TrainedRun) -> None:
    d = run.model.diffusion
    if not d.sigma_min < sigma <= d.sigma_max:
        raise ValueError(f"sigma: expected a level from {d.sigma_min} to {d.sigma_max}, got {sigma}")
