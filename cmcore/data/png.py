"""A grid of images as one PNG file."""

import io

import numpy as np

GAP = 96  # grey level between the images, so that neighbours do not run into one another


def tile(images: np.ndarray, columns: int, *, gap: int = 1) -> np.ndarray:
    """Images (N, C, H, W) uint8 row by row, `gap` grey pixels around each: (C, rows (H + gap) + gap, ...)."""
    count, channels, height, width = images.shape
    rows = -(-count // columns)
    grid = np.full((channels, rows * (height + gap) + gap, columns * (width + gap) + gap), GAP, np.uint8)
    for index, image in enumerate(images):
        row, column = divmod(index, columns)
        top, left = row * (height + gap) + gap, column * (width + gap) + gap
        grid[:, top : top + height, left : left + width] = image
    return grid


def to_png(images: np.ndarray, columns: int, *, least_side: int = 512) -> bytes:
    """A PNG of the grid, small images enlarged by a whole factor without smoothing so that pixels stay pixels."""
    from PIL import Image  # no other function of the core needs it

    grid = tile(images, columns)
    factor = max(1, -(-least_side // max(grid.shape[1:])))
    pixels = grid.repeat(factor, axis=1).repeat(factor, axis=2).transpose(1, 2, 0)
    buffer = io.BytesIO()
    Image.fromarray(pixels.squeeze(-1) if pixels.shape[-1] == 1 else pixels).save(buffer, format="PNG")
    return buffer.getvalue()
