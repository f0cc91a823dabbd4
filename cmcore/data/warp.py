"""Affine warps of images without aliasing, which a generative model would learn to reproduce.

An image is reflected at its edges, upsampled by two with an orthogonal wavelet, sampled bilinearly where the inverse
map points, and downsampled by the same wavelet (arXiv 2006.06676, App. B.2). Every filter is a small matrix from pixels
to samples, so reflection and filter are one product an axis, and each image is treated alone. All of it is float64:
then neither autocast nor TF32 touches it.
"""

import math
from functools import lru_cache

import torch
from torch import Tensor

# Daubechies' least asymmetric wavelet with six vanishing moments, sym6 (Ten Lectures on Wavelets, Table 6.3): with
# h_k = sum_n LOW_PASS[k - 2n] x_n, the same filter leads back, for its even shifts are orthonormal.
LOW_PASS = (
    0.015404109327027373, 0.0034907120842174702, -0.11799011114819057, -0.048311742585633,
    0.4910559419267466, 0.787641141030194, 0.3379294217276218, -0.07263752278646252,
    -0.021060292512300564, 0.04472490177066578, 0.0017677118642428036, -0.007800708325034148,
)  # fmt: skip
TAPS = len(LOW_PASS)
CENTRE = 5  # the tap next to its centre of gravity: where a pixel lies among the samples made of it
MEMORY = 2**27  # bytes of upsampled images held at a time


def warp(x: Tensor, matrix: Tensor, shift: Tensor) -> Tensor:
    """Sample images x (B, C, H, W) at the points of an affine map; the result has the dtype of x.

    Points beyond one reflection of the image are 0, as in EDM's pipeline.

    Args:
        x: the images.
        matrix: (B, 2, 2) float64. Output pixel p shows the input at c + matrix (p - c) + shift, where c is the centre,
            and pixels are (x to the right, y down).
        shift: (B, 2) float64, in pixels.

    Returns:
        The warped images.
    """
    image = 8 * x.shape[1] * math.prod(2 * (3 * size - 2) for size in x.shape[2:])
    parts = max(1, -(-len(x) * image // MEMORY))
    split = zip(*(t.tensor_split(parts) for t in (x, matrix, shift)), strict=True)
    return torch.cat([_warp(*part) for part in split])


def _warp(x: Tensor, matrix: Tensor, shift: Tensor) -> Tensor:
    (height, width), device = x.shape[2:], x.device
    fine = _synthesis(height, device) @ x.double() @ _synthesis(width, device).mT
    columns, rows = _positions(width, device), _positions(height, device)
    samples = torch.stack(torch.meshgrid(columns, rows, indexing="xy"), dim=-1)  # (h, w, 2), relative to the centre
    points = samples @ matrix[:, None].mT + shift[:, None, None]
    # Torch counts from -1 to 1 over 2 n samples, the centre between two of them; ours is the sample before it.
    across, down = (2 * points - 0.5).unbind(-1)
    points = torch.stack([across / (3 * width - 2), down / (3 * height - 2)], dim=-1)
    sampled = torch.nn.functional.grid_sample(fine, points, padding_mode="zeros", align_corners=False)
    return (_analysis(height, device) @ sampled @ _analysis(width, device).mT).to(x.dtype)


def _positions(size: int, device: torch.device) -> Tensor:
    """Positions, relative to the centre, of the samples of the finer grid that make up an output of `size` pixels."""
    count = 2 * size + TAPS - 2
    return (torch.arange(count, dtype=torch.float64, device=device) - CENTRE - (size - 1)) / 2


@lru_cache(maxsize=8)  # by device, so that no step waits for a copy
def _synthesis(size: int, device: torch.device) -> Tensor:
    """(2 (3 size - 2), size): pixels, reflected without repeating the last one, to twice as many samples."""
    margin = size - 1
    padded = size + 2 * margin
    result = torch.zeros(2 * padded, size, dtype=torch.float64)
    for place in range(padded):
        pixel = abs(place - margin)
        pixel = min(pixel, 2 * margin - pixel)
        for tap, value in enumerate(LOW_PASS):
            sample = 2 * place + tap - CENTRE
            if 0 <= sample < 2 * padded:
                result[sample, pixel] += value
    return result.to(device)


@lru_cache(maxsize=8)
def _analysis(size: int, device: torch.device) -> Tensor:
    """(size, 2 size + TAPS - 2): samples of the finer grid back to pixels."""
    result = torch.zeros(size, 2 * size + TAPS - 2, dtype=torch.float64)
    for pixel in range(size):
        result[pixel, 2 * pixel : 2 * pixel + TAPS] = torch.tensor(LOW_PASS, dtype=torch.float64)
    return result.to(device)
