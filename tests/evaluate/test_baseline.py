"""The Gaussian baseline has the moments of the pixels."""

import numpy as np
import pytest
import torch

from cmcore.evaluate.baseline import gaussian_pixels
from cmcore.evaluate.moments import Moments


def images(count: int) -> np.ndarray:
    """Correlated pixels well inside 0..255, so that rounding and clipping hardly change the moments."""
    rng = np.random.default_rng(0)
    z = rng.normal(size=(count, 4))
    mixed = z @ np.array([[10, 5, 0, 0], [0, 10, 5, 0], [0, 0, 10, 5], [0, 0, 0, 10.0]]) + [100, 120, 140, 160]
    return mixed.round().clip(0, 255).astype(np.uint8).reshape(count, 1, 2, 2)


def test_moments_match_within_their_standard_error():
    real, count = images(2500), 20_000
    fake = gaussian_pixels(real, count, seed=0)
    assert (fake.shape, fake.dtype) == ((count, 1, 2, 2), torch.uint8)
    expected, got = (Moments.of(x.flatten(1)) for x in (torch.from_numpy(real), fake))
    scale = expected.cov.diag().sqrt()
    assert ((got.mean - expected.mean).abs() < 5 * scale / count**0.5).all()
    # The standard error of a covariance is at most sqrt(2 / n) s_i s_j; rounding adds 1/12 to each variance.
    slack = 5 * (2 / count) ** 0.5 * torch.outer(scale, scale) + 0.1
    assert ((got.cov - expected.cov).abs() < slack).all()


def test_addressed_by_its_seed():
    real = images(50)
    assert torch.equal(gaussian_pixels(real, 10, seed=1), gaussian_pixels(real, 10, seed=1))
    assert not torch.equal(gaussian_pixels(real, 10, seed=1), gaussian_pixels(real, 10, seed=2))


def test_one_image_has_no_covariance():
    with pytest.raises(ValueError, match="at least 2"):
        gaussian_pixels(images(1), 10, seed=0)
