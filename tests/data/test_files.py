"""Images as files: a grid, an archive, a folder."""

import numpy as np
import pytest
from PIL import Image

from cmcore.data.files import save_images


def images(count: int, channels: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, channels, 6, 6), dtype=np.uint8)


@pytest.mark.parametrize("channels", [1, 3])
def test_a_folder_has_every_image_as_it_is(tmp_path, channels):
    given = images(3, channels)
    save_images(given, tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["000000.png", "000001.png", "000002.png"]
    for index, image in enumerate(given):
        pixels = np.asarray(Image.open(tmp_path / f"out/{index:06d}.png")).reshape(6, 6, channels)
        assert np.array_equal(pixels.transpose(2, 0, 1), image)


def test_an_archive_has_images_and_labels(tmp_path):
    given, labels = images(5, 4), np.arange(5)
    save_images(given, tmp_path / "new/out.npz", labels=labels)
    with np.load(tmp_path / "new/out.npz") as found:
        assert np.array_equal(found["images"], given)
        assert np.array_equal(found["labels"], labels)


def test_a_grid_is_square_unless_columns_are_named(tmp_path):
    for name, columns in (("a", 0), ("b", 8)):
        save_images(images(16, 3), tmp_path / f"{name}.png", columns=columns)
    square, wide = (Image.open(tmp_path / f"{name}.png").size for name in "ab")
    assert square[0] == square[1]
    assert wide[0] > 3 * wide[1]


@pytest.mark.parametrize(
    ("name", "given", "message"),
    [
        ("out.jpg", images(1, 3), "expected NAME.png, NAME.npz, or a folder without an ending"),
        ("out.png", images(1, 4), "a PNG holds uint8 images of 1 or 3 channels, got uint8 with 4 channels"),
        ("out", images(1, 3) / 255, "got float64 with 3 channels; name a .npz file instead"),
    ],
)
def test_what_cannot_be_written_is_refused(tmp_path, name, given, message):
    with pytest.raises(ValueError, match=message):
        save_images(given, tmp_path / name)
    assert not list(tmp_path.iterdir())
