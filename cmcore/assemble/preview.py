"""A look at a run while it trains: samples from fixed noise."""

from collections.abc import Callable
from pathlib import Path

import torch

from cmcore.assemble.project import Run, build_method
from cmcore.data.png import to_png
from cmcore.diffusion.grids import karras_grid, with_zero
from cmcore.diffusion.precond import Denoiser
from cmcore.sample.base import Sampler
from cmcore.sample.fewstep import Multistep
from cmcore.sample.solvers import Heun
from cmcore.sample.stream import generate
from cmcore.train.checkpoint import write_atomic

SEED = 1
STEPS = 10  # Heun steps of a diffusion model: enough to see what it draws


def previewer(
    run: Run, channels: int, resolution: int, classes: int, *, columns: int = 8, device: str = "cpu"
) -> Callable[[Denoiser, Path], None]:
    """A function that draws columns^2 samples of a denoiser into a PNG file: always from the same noise and labels."""
    d = run.diffusion
    if build_method(run).few_step:
        sampler: Sampler = Multistep((d.sigma_max,), d.sigma_min)
    else:
        sampler = Heun(with_zero(karras_grid(STEPS, d.sigma_min, d.sigma_max, d.rho)))

    def draw(denoiser: Denoiser, path: Path) -> None:
        shape = (channels, resolution, resolution)
        batches = generate(
            sampler, denoiser, shape, range(columns**2), seed=SEED, batch=columns**2, classes=classes, device=device
        )
        write_atomic(path, to_png(torch.cat(list(batches)).cpu().numpy(), columns))

    return draw
