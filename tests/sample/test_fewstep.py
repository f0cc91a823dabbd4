"""Multistep consistency sampling with the exact consistency function of a Gaussian."""

import math

import pytest
import torch
from torch import Tensor

from cmcore.oracles import Gaussian, as_consistency
from cmcore.rng import NoiseSource
from cmcore.sample.fewstep import Multistep

MEAN, STD, T, EPSILON = 0.3, 0.5, 80.0, 0.002
ORACLE = Gaussian(MEAN, STD)
MODEL = as_consistency(ORACLE, EPSILON)
SHAPE = (1, 2, 2)


def shrink(tau: float) -> float:
    """f multiplies the distance from the mean by this."""
    return math.sqrt((STD**2 + EPSILON**2) / (STD**2 + tau**2))


def whitened(count: int, shape: tuple[int, ...]) -> Tensor:
    """Normal numbers whose sample mean is 0 and whose sample variance is 1, exactly."""
    z = NoiseSource(0, range(count)).normal(shape)
    return (z - z.mean()) / z.std()


def test_one_step_from_the_terminal_marginal_has_exactly_the_data_s_moments():
    """x_T ~ N(mean, s^2 + T^2) goes to N(mean, s^2 + eps^2): f is affine, so exact moments in, exact ones out."""
    x_T = MEAN + math.hypot(STD, T) * whitened(50, (1, 4, 4))
    images = Multistep((T,), EPSILON).from_noise(MODEL, x_T, NoiseSource(1, range(50)))
    assert images.mean().item() == pytest.approx(MEAN, abs=1e-12)
    assert images.std().item() == pytest.approx(math.hypot(STD, EPSILON), abs=1e-12)


def test_one_step_from_pure_noise_has_exactly_the_moments_of_the_affine_map():
    images = Multistep((T,), EPSILON).from_noise(MODEL, T * whitened(50, (1, 4, 4)), NoiseSource(1, range(50)))
    assert images.mean().item() == pytest.approx(MEAN * (1 - shrink(T)), abs=1e-12)
    assert images.std().item() == pytest.approx(T * shrink(T), abs=1e-12)


def test_multistep_follows_algorithm_1():
    source, levels = NoiseSource(2, range(3)), (T, 5.0, 0.8)
    images = Multistep(levels, EPSILON)(MODEL, SHAPE, source)
    replay = NoiseSource(2, range(3))
    x = MEAN + shrink(T) * (T * replay.normal(SHAPE) - MEAN)
    for tau in levels[1:]:
        x_tau = x + math.sqrt(tau**2 - EPSILON**2) * replay.normal(SHAPE)
        x = MEAN + shrink(tau) * (x_tau - MEAN)
    torch.testing.assert_close(images, x, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("tau", [0.1, 0.8, 10.0])
def test_two_steps_keep_the_data_s_variance(tau: float):
    """Re-noising lands on the marginal at tau: (s^2 + eps^2) + (tau^2 - eps^2) = s^2 + tau^2, and f brings it back.

    64k scalars, four standard errors.
    """
    x_T = MEAN + math.hypot(STD, T) * NoiseSource(3, range(64)).normal((1, 32, 32))
    images = Multistep((T, tau), EPSILON).from_noise(MODEL, x_T, NoiseSource(4, range(64)))
    assert images.mean().item() == pytest.approx(MEAN, abs=4 * STD / 256)
    assert images.std().item() == pytest.approx(math.hypot(STD, EPSILON), abs=4 * STD / 256 / 2**0.5)


def test_sigma_min_zero_adds_all_of_tau():
    def zero(x: Tensor, sigma: Tensor, labels: Tensor | None) -> Tensor:
        seen.append(x)
        return torch.zeros_like(x)

    for sigma_min, expected in ((0.0, 0.5), (0.3, 0.4)):
        seen: list[Tensor] = []
        Multistep((T, 0.5), sigma_min)(zero, SHAPE, NoiseSource(5, range(3)))
        replay = NoiseSource(5, range(3))
        replay.normal(SHAPE)
        torch.testing.assert_close(seen[1], expected * replay.normal(SHAPE))


def test_clamp_is_off_unless_asked_for():
    def far(x: Tensor, sigma: Tensor, labels: Tensor | None) -> Tensor:
        return torch.full_like(x, 3.0)

    source = NoiseSource(6, range(2))
    assert Multistep((T, 0.8), EPSILON)(far, SHAPE, source).unique().tolist() == [3.0]
    assert Multistep((T, 0.8), EPSILON, clamp=True)(far, SHAPE, source).unique().tolist() == [1.0]


@pytest.mark.parametrize(
    ("levels", "sigma_min"),
    [((), 0.002), ((0.8, 80.0), 0.002), ((80.0, 0.001), 0.002), ((80.0,), -0.1), ((float("inf"),), 0.0)],
)
def test_impossible_levels_are_refused(levels: tuple[float, ...], sigma_min: float):
    with pytest.raises(ValueError, match="descending levels"):
        Multistep(levels, sigma_min)
