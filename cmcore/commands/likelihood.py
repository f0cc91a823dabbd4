"""`cmlab likelihood`: bits per dimension of the training images under a trained run."""

import torch

from cmcore.assemble.results import open_run
from cmcore.config import ConfigError, require
from cmcore.data.images import ImageData
from cmcore.data.order import indices
from cmcore.evaluate.likelihood import bits_per_dimension, measured
from cmcore.pipeline.common import Setup

BATCH = 500  # images at once
NOTE = "an upper bound, by uniform dequantisation; of training images, so memorising them lowers it"


def line(setup: Setup, name: str, *, images: int, steps: int, seed: int) -> str:
    """The value with its standard error, and all that it was made from.

    Raises:
        ConfigError: there is no such run, a number is too small, or the method has no likelihood.
        DataError: the run has no weights yet, or the data are no images.
    """
    require(images >= 2, "--images", "at least 2", images)
    require(steps >= 1, "--steps", "at least 1", steps)
    opened = open_run(name, setup.folders.root)
    model, diffusion = opened.model, opened.sampling.diffusion
    denoiser = opened.method.diffusion_model(model.denoiser)
    if denoiser is None:
        raise ConfigError(
            f"runs.{name}.method",
            f"expected a method with a denoiser in it, such as edm, rf or ctm, got {model.meta['method']}",
        )
    data = ImageData.open(setup.folders.data).seen("words" if model.shape.reads else model.shape.classes > 0)
    chosen = indices(len(data), 0, min(images, len(data)), seed).tolist()
    bits = []
    for at in range(0, len(chosen), BATCH):
        rows = chosen[at : at + BATCH]
        stored, labels = data.batch(rows)
        bits.append(
            bits_per_dimension(
                denoiser, stored, diffusion, steps=steps, seed=seed, indices=rows,
                labels=labels if model.shape.labelled else None,
            )
        )  # fmt: skip
    value, spread, _ = measured(torch.cat(bits))
    made = f"{len(chosen)} images, {steps} Runge-Kutta steps, seed {seed}, weights {model.meta['fingerprint']}"
    return f"{name}: {value:.3f} ± {spread:.3f} bits per dimension ({made}); {NOTE}"
