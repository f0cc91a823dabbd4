"""Editing with a diffusion model by replacement."""

import math
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from cmcore.diffusion.settings import DiffusionConfig
from cmcore.oracles import Gaussian, GaussianMixture, as_denoiser
from cmcore.rng import NoiseSource
from cmcore.sample.imputation import impute
from cmcore.sample.known import Known, known_grey, known_means, known_pixels
from cmcore.sample.presets import ode_sampler

SAMPLER = ode_sampler(DiffusionConfig(), 12)
ORACLE = Gaussian(mean=0.1, std=0.3)


def images(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 2 - 1


@pytest.mark.parametrize(
    "known",
    [known_pixels(images(2, 3, 4, 4), images(2, 3, 4, 4) > 0), known_grey(images(2, 1, 4, 4)),
     known_means(images(2, 3, 2, 2), 2)],
    ids=["pixels", "grey", "means"],
)  # fmt: skip
def test_the_known_part_is_kept(known: Known):
    x = impute(SAMPLER, as_denoiser(ORACLE), known, NoiseSource(0, range(2)))
    assert known.error(x) < 1e-14
    assert known.error(x + 1e-3) > 1e-4  # the error can see a difference
    assert (x - known.shown()).abs().max() > 0.1


def test_the_noised_known_part_is_that_of_the_noised_images():
    x, noise, missing = images(2, 3, 4, 4), images(2, 3, 4, 4, seed=1), images(2, 1, 4, 4, seed=2) > 0
    torch.testing.assert_close(
        known_pixels(x, missing).noised(noise).coefficients, known_pixels(x + noise, missing).coefficients
    )
    means = known_means(torch.nn.functional.avg_pool2d(x, 2), 2).noised(noise).project(torch.zeros_like(x))
    wanted = known_means(torch.nn.functional.avg_pool2d(x + noise, 2), 2)
    assert wanted.error(means) < 1e-14


def test_the_evaluations_are_those_of_the_sampler():
    calls = 0

    def counted(x: Tensor, sigma: Tensor, labels: Tensor | None) -> Tensor:
        nonlocal calls
        calls += 1
        return ORACLE.denoise(x, sigma)

    impute(SAMPLER, counted, known_grey(images(1, 1, 2, 2)), NoiseSource(0, [0]))
    assert calls == SAMPLER.nfe == 23


def test_independent_missing_pixels_come_from_the_data():
    missing = torch.zeros(1, 1, 32, 32, dtype=torch.bool)
    missing[..., :16] = True
    known = known_pixels(images(32, 1, 32, 32), missing)
    sampler = ode_sampler(DiffusionConfig(), 60)  # with 12 steps, Heun's error in the deviation is a sixth
    filled = impute(sampler, as_denoiser(ORACLE), known, NoiseSource(1, range(32)))[..., :16]
    error = 0.3 / math.sqrt(filled.numel())
    assert filled.mean().item() == pytest.approx(0.1, abs=4 * error)
    assert filled.std().item() == pytest.approx(0.3, rel=0.02)


def test_what_is_missing_fits_what_is_known():
    """Two patterns of two pixels, of which the first is known: the second follows, if not always, as half would."""
    means = torch.tensor([[0.5, 0.5], [-0.5, -0.5]], dtype=torch.float64).reshape(2, 1, 1, 2)
    two = GaussianMixture(torch.tensor([0.5, 0.5]), means, torch.tensor([0.05, 0.05], dtype=torch.float64))
    missing = torch.tensor([False, True]).reshape(1, 1, 1, 2)

    def filled(first: float, count: int = 64) -> Sequence[float]:
        known = known_pixels(torch.full((count, 1, 1, 2), first, dtype=torch.float64), missing)
        return impute(SAMPLER, as_denoiser(two), known, NoiseSource(0, range(count)))[:, 0, 0, 1].tolist()

    assert sum(value > 0 for value in filled(0.5)) > 48
    assert sum(value < 0 for value in filled(-0.5)) > 48
