"""A grid of images: every pixel in its place, and a PNG that decodes to it."""

import io

import numpy as np
import pytest
from PIL import Image

from cmcore.data.png import GAP, tile, to_png

IMAGES = np.random.default_rng(0).integers(0, 256, (5, 3, 4, 6), dtype=np.uint8)


@pytest.mark.parametrize("gap", [0, 1, 3])
def test_every_image_stands_in_its_cell(gap: int):
    grid = tile(IMAGES, columns=2, gap=gap)
    assert grid.shape == (3, 3 * (4 + gap) + gap, 2 * (6 + gap) + gap)
    for index, image in enumerate(IMAGES):
        top, left = (index // 2) * (4 + gap) + gap, (index % 2) * (6 + gap) + gap
        np.testing.assert_array_equal(grid[:, top : top + 4, left : left + 6], image)
    assert (grid == GAP).sum() >= grid.size - IMAGES.size  # the gaps and the missing sixth image


@pytest.mark.parametrize("channels", [1, 3])
def test_png_holds_the_grid_enlarged(channels: int):
    images = IMAGES[:, :channels]
    pixels = np.asarray(Image.open(io.BytesIO(to_png(images, columns=3, least_side=100))))
    grid = tile(images, columns=3).transpose(1, 2, 0).squeeze()
    factor = pixels.shape[0] // grid.shape[0]
    assert factor > 1
    assert max(pixels.shape[:2]) >= 100
    np.testing.assert_array_equal(pixels[::factor, ::factor], grid)
