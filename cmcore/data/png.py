"""A grid of images as one PNG file."""

import io

import numpy as np


def tile(images: np.ndarray, columns: int) -> np.ndarray:
    """Images (N, C, H, W) uint8 side by side, row by row, missing ones black: (C, rows H, columns W)."""
    count, channels, height, width = images.shape
    rows = -(-count // columns)
    full = np.zeros((rows * columns, channels, height, width), np.uint8)
    full[:count] = images
    grid = full.reshape(rows, columns, channels, height, width)
    return grid.transpose(2, 0, 3, 1, 4).reshape(channels, rows * height, columns * width)


def to_png(images: np.ndarray, columns: int, *, least_side: int = 320) -> bytes:
    """A PNG of the grid, small images enlarged by a whole factor without smoothing so that pixels stay pixels."""
    from PIL import Image  # only those who look at images need it

    grid = tile(images, columns)
    factor = max(1, -(-least_side // max(grid.shape[1:])))
    pixels = grid.repeat(factor, axis=1).repeat(factor, axis=2).transpose(1, 2, 0)
    buffer = io.BytesIO()
    Image.fromarray(pixels.squeeze(-1) if pixels.shape[-1] == 1 else pixels).save(buffer, format="PNG")
    return buffer.getvalue()
