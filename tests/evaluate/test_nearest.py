"""Nearest training images, and which samples count as copies."""

import numpy as np
import pytest
import torch

from cmcore.evaluate import nearest as module
from cmcore.evaluate.nearest import Training, memorised, nearest_distance


def images(count: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, 3, 4, 4)).astype(np.uint8)


def test_distances_are_exact_and_blocks_do_not_change_them(monkeypatch: pytest.MonkeyPatch):
    training, samples = images(30, 0), images(7, 1)
    samples[3] = training[17]
    expected = np.square(samples[:, None].astype(int) - training[None]).sum((2, 3, 4))
    for numbers in (2**22, 500, 1):
        monkeypatch.setattr(module, "_NUMBERS", numbers)
        found = Training(training, "x").nearest(torch.from_numpy(samples))
        assert found.squared.tolist() == np.sort(expected, 1)[:, :2].tolist()
        assert found.row.tolist() == expected.argmin(1).tolist()
    assert found.row[3] == 17
    assert found.squared[3, 0] == 0


def test_a_copy_is_three_times_nearer_to_one_image_than_to_any_other():
    squared = torch.tensor([[0.0, 5.0], [1.0, 9.0], [1.0, 9.5], [4.0, 36.1], [0.0, 0.0]], dtype=torch.float64)
    found = memorised(squared)
    assert found.value == pytest.approx(4 / 5)
    assert found.spread == pytest.approx((0.8 * 0.2 / 5) ** 0.5)


def test_noise_around_training_images_is_memorised_and_fresh_noise_is_not():
    training = images(200, 0)
    noise = np.random.default_rng(2).integers(-5, 6, training.shape)
    copies = (training.astype(int) + noise).clip(0, 255).astype(np.uint8)
    known = Training(training, "x")
    assert memorised(known.nearest(torch.from_numpy(copies)).squared).value == 1
    assert memorised(known.nearest(torch.from_numpy(images(100, 3))).squared).value == 0


def test_the_distance_is_in_units_of_pixels():
    black, white = np.zeros((2, 1, 2, 2), np.uint8), torch.full((1, 1, 2, 2), 255, dtype=torch.uint8)
    assert nearest_distance(Training(black, "x").nearest(white).squared, 4).value == 2


def test_images_of_another_shape_are_refused():
    with pytest.raises(ValueError, match=r"expected \(3, 4, 4\)"):
        Training(images(5, 0), "x").nearest(torch.zeros((1, 1, 4, 4), dtype=torch.uint8))
