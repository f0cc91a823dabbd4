"""A look at a run while it trains: samples from fixed noise."""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from cmcore.assemble.inference import for_samples
from cmcore.assemble.models import ModelShape, drawn
from cmcore.assemble.run import Run
from cmcore.atomic import write_atomic
from cmcore.data.png import to_png
from cmcore.diffusion.precond import Denoiser
from cmcore.sample.stream import generate
from cmcore.tensors import to_uint8

SEED = 1
STEPS = 10  # Heun steps of a diffusion model: enough to see what it draws


def previewer(
    run: Run,
    model: ModelShape,
    *,
    columns: int = 8,
    device: str = "cpu",
    to_images: Callable[[Tensor], Tensor] = to_uint8,
    captions: Tensor | None = None,
) -> Callable[[Denoiser, Path], None]:
    """A function that draws columns^2 samples of a denoiser into a PNG file: always from the same noise and labels.

    Captions are drawn from `captions`, int64 (N, L). The denoiser is its own to change: on a GPU it is brought to the
    precision of the run.
    """
    method = run.objective
    sampler = method.samplers(run.sampling(STEPS))[0]

    def draw(denoiser: Denoiser, path: Path) -> None:
        denoiser = for_samples(denoiser, run.train, device, compiled=False)
        shape, count = (model.channels, model.resolution, model.resolution), columns**2
        batches = generate(
            sampler, method.model(denoiser), shape, range(count), seed=SEED, batch=count, device=device,
            to_images=to_images, labels=lambda rows: drawn(model, rows, SEED, captions=captions),
        )  # fmt: skip
        write_atomic(path, to_png(torch.cat(list(batches)).cpu().numpy(), columns))

    return draw
