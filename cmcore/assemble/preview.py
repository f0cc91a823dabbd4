"""A look at a run while it trains: samples from fixed noise."""

from collections.abc import Callable
from pathlib import Path

import torch

from cmcore.assemble.project import Run
from cmcore.assemble.samplers import quickest_sampler
from cmcore.data.png import to_png
from cmcore.diffusion.precond import Denoiser
from cmcore.sample.stream import generate
from cmcore.train.checkpoint import write_atomic

SEED = 1
STEPS = 10  # Heun steps of a diffusion model: enough to see what it draws


def previewer(
    run: Run, channels: int, resolution: int, classes: int, *, columns: int = 8, device: str = "cpu"
) -> Callable[[Denoiser, Path], None]:
    """A function that draws columns^2 samples of a denoiser into a PNG file: always from the same noise and labels."""
    sampler = quickest_sampler(run, run.diffusion, STEPS)

    def draw(denoiser: Denoiser, path: Path) -> None:
        shape = (channels, resolution, resolution)
        batches = generate(
            sampler, denoiser, shape, range(columns**2), seed=SEED, batch=columns**2, classes=classes, device=device
        )
        write_atomic(path, to_png(torch.cat(list(batches)).cpu().numpy(), columns))

    return draw
