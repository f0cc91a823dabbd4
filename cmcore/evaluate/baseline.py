"""The baseline of every comparison: a Gaussian fitted to the pixels."""

import numpy as np
import torch
from torch import Tensor

from cmcore.evaluate.images import ImageArray
from cmcore.rng import generator

_CHUNK = 1000  # training images in memory at once


def gaussian_pixels(images: ImageArray, count: int, seed: int) -> Tensor:
    """Samples (count, C, H, W) uint8 from the Gaussian with the mean and the covariance of uint8 images (N, C, H, W).

    A sample is mean + sum_i w_i (x_i - mean) / sqrt(N - 1) with standard normal w, whose covariance is exactly that of
    the images. The covariance matrix is never formed, so any resolution works.
    """
    N = len(images)
    if N < 2:
        raise ValueError(f"images: expected at least 2, got {N}")
    chunks = range(0, N, _CHUNK)
    mean = sum(torch.from_numpy(_rows(images, start).sum(0)) for start in chunks) / N
    x = torch.zeros((count, images[0].size), dtype=torch.float64)
    for start in chunks:
        centred = torch.from_numpy(_rows(images, start)) - mean
        rng = generator(seed, "gaussian pixels", start)
        x += torch.randn((count, len(centred)), dtype=torch.float64, generator=rng) @ centred
    x = mean + x / (N - 1) ** 0.5
    return x.round().clip(0, 255).to(torch.uint8).reshape(count, *images.shape[1:])


def _rows(images: ImageArray, start: int) -> np.ndarray:
    chunk = np.asarray(images[start : start + _CHUNK])
    return chunk.reshape(len(chunk), -1).astype(np.float64)
