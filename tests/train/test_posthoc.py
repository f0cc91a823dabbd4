"""Post-hoc EMA against numerical integration and against averages that were really tracked."""

import math

import numpy as np
import pytest
import torch

from cmcore.train import ema
from cmcore.train.posthoc import HalfLifeProfile, PowerProfile, combination, combine, misfit
from cmcore.train.settings import EmaConfig

TOTAL = 1000.0


def integral(f, low: float, high: float, points: int = 40_001) -> float:
    """Simpson's rule."""
    x = np.linspace(low, high, points)
    y = f(x)
    return float((x[1] - x[0]) / 3 * (y[0] + y[-1] + 4 * y[1:-1:2].sum() + 2 * y[2:-1:2].sum()))


@pytest.mark.parametrize("std", [0.05, 0.1, 0.25])
def test_power_profile_has_mass_one_and_the_width_it_is_named_by(std):
    p = PowerProfile.of(std, TOTAL)
    mean = integral(lambda x: x * p.density(x), 0, TOTAL)
    assert integral(p.density, 0, TOTAL) == pytest.approx(1, abs=1e-6)
    variance = integral(lambda x: (x - mean) ** 2 * p.density(x), 0, TOTAL)
    assert math.sqrt(variance) / TOTAL == pytest.approx(std, rel=1e-5)


@pytest.mark.parametrize(
    ("std_a", "t_a", "std_b", "t_b"), [(0.05, 1000, 0.1, 1000), (0.05, 300, 0.2, 1000), (0.1, 900, 0.1, 200)]
)
def test_inner_product_of_power_profiles(std_a, t_a, std_b, t_b):
    a, b = PowerProfile.of(std_a, t_a), PowerProfile.of(std_b, t_b)
    assert a.inner(b) == pytest.approx(integral(lambda x: a.density(x) * b.density(x), 0, min(t_a, t_b)), rel=1e-6)
    assert a.inner(b) == b.inner(a)


@pytest.mark.parametrize("half_life", [10.0, 60.0, 500.0])
@pytest.mark.parametrize("ramp", [0.0, 0.05, 0.1])
@pytest.mark.parametrize("images", [250.0, 1000.0])
def test_inner_product_with_a_half_life_profile(half_life, ramp, images):
    target = HalfLifeProfile(half_life, ramp, images)
    for p in (PowerProfile.of(0.05, 1000), PowerProfile.of(0.1, 250), PowerProfile.of(0.2, 600)):

        def both(x, p=p):
            return target.density(x) * p.density(x)

        end, turn = min(images, p.images), min(target.turn, images, p.images)
        # The density jumps at the turn, so the two sides are integrated apart.
        parts = (0.0, turn), (np.nextafter(turn, np.inf), end)
        expected = sum(integral(both, low, high) for low, high in parts if low < high)
        assert target.inner(p) == pytest.approx(expected, rel=1e-5)


def test_half_life_profile_keeps_its_mass_but_for_the_initial_weights():
    assert integral(HalfLifeProfile(100, 0.0, TOTAL).density, 1e-9, TOTAL) == pytest.approx(1 - 0.5**10, abs=1e-6)
    ramped = HalfLifeProfile(40, 0.1, TOTAL)
    mass = integral(ramped.density, 0, 400) + integral(ramped.density, np.nextafter(400, 401), TOTAL)
    assert mass == pytest.approx(1, abs=1e-6)


def test_a_stored_target_is_found_exactly():
    stored = [PowerProfile.of(std, t) for t in (250, 500, 750, 1000) for std in (0.05, 0.1)]
    for index, target in enumerate(stored):
        expected = np.eye(len(stored))[index]
        np.testing.assert_allclose(combination(stored, target), expected, atol=1e-6)


def test_the_free_solution_over_its_sum_is_that_of_the_authors_code():
    """NVlabs/edm2, training/phema.py: Algorithm 3 of the paper, divided by the sum of the coefficients."""
    moments, wanted = (1.0, 2.0, 3.0), 0.15

    def correlation(a: PowerProfile, b: PowerProfile) -> float:
        ratio = (a.images / b.images) ** (b.gamma if a.images < b.images else -a.gamma)
        top = (a.gamma + 1) * (b.gamma + 1) * ratio
        return top / ((a.gamma + b.gamma + 1) * max(a.images, b.images))

    stored = [PowerProfile.of(std, at) for at in moments for std in (0.05, 0.1)]
    target = PowerProfile.of(wanted, 3.0)
    A = [[correlation(a, b) for b in stored] for a in stored]
    expected = np.linalg.solve(np.array(A), np.array([correlation(a, target) for a in stored]))
    free = combination(stored, target, mass=False)
    np.testing.assert_allclose(free / free.sum(), expected / expected.sum(), rtol=1e-6, atol=1e-8)
    assert abs(free.sum() - 1) > 1e-4


def test_the_mass_is_one_and_the_shape_hardly_worse():
    stored = [PowerProfile.of(std, TOTAL * k / 4) for k in range(1, 5) for std in (0.05, 0.1)]
    target = PowerProfile.of(0.15, TOTAL)
    free, held = combination(stored, target, mass=False), combination(stored, target)
    assert abs(free.sum() - 1) > 0.01
    assert held.sum() == pytest.approx(1, abs=1e-9)
    assert misfit(stored, free, target) <= misfit(stored, held, target) < 1.2 * misfit(stored, free, target)


def test_more_snapshots_approximate_better():
    target = PowerProfile.of(0.15, TOTAL)
    errors = []
    for count in (2, 4, 8, 16):
        stored = [PowerProfile.of(std, TOTAL * k / count) for k in range(1, count + 1) for std in (0.05, 0.1)]
        errors.append(misfit(stored, combination(stored, target), target))
    assert errors == sorted(errors, reverse=True)
    assert errors[0] < 0.3
    assert errors[-1] < 0.02


def test_a_moment_behind_the_last_snapshot_is_refused():
    with pytest.raises(ValueError, match="up to the last stored profile, 500, got 501"):
        combination([PowerProfile.of(0.1, 500)], PowerProfile.of(0.1, 501))
    with pytest.raises(ValueError, match="got 1"):
        combination([], PowerProfile.of(0.1, 1))


def track(walk: torch.Tensor, profile: EmaConfig, batch: int, keep: set[int]) -> dict[int, torch.Tensor]:
    """The average as the trainer keeps it, at some moments; the walk's row 0 stands for the initial weights."""
    average, kept = walk[0].clone(), {}
    for step, current in enumerate(walk[1:], start=1):
        ema.update([average], [current], ema.decay(profile, step * batch, batch))
        if step * batch in keep:
            kept[step * batch] = average.clone()
    return kept


@pytest.mark.parametrize(
    ("wanted", "images", "bound"),
    [
        (EmaConfig(power_std=0.05), 16_000, 1e-6),
        (EmaConfig(power_std=0.075), 16_000, 0.005),
        (EmaConfig(power_std=0.15), 16_000, 0.006),
        (EmaConfig(power_std=0.2), 14_000, 0.03),
        (EmaConfig(half_life=600, ramp=0.1), 16_000, 0.006),
        (EmaConfig(half_life=1500, ramp=0.1), 12_000, 0.01),
        (EmaConfig(half_life=1500, ramp=0.0), 16_000, 0.006),
    ],
)
def test_reconstruction_of_a_random_walk_agrees_with_the_tracked_average(wanted, images, bound):
    batch, steps = 10, 1600
    g = torch.Generator().manual_seed(3)
    # Weights stand away from zero, so lost mass would show.
    walk = torch.randn(steps + 1, 200, generator=g, dtype=torch.float64).cumsum(0) / math.sqrt(steps) + 3
    moments = [2000 * k for k in range(1, 9)]
    stored, tensors = [], []
    for std in (0.05, 0.1):
        kept = track(walk, EmaConfig(power_std=std), batch, set(moments))
        stored += [PowerProfile.of(std, t) for t in moments]
        tensors += [{"w": kept[t]} for t in moments]
    truth = track(walk, wanted, batch, {images})[images]
    target = (
        PowerProfile.of(wanted.power_std, images)
        if wanted.power_std
        else HalfLifeProfile(wanted.half_life, wanted.ramp, images)
    )
    made = combine(combination(stored, target), tensors)["w"]
    # The scale is what an average does at all: how far it stands from the weights of the moment.
    scale = (walk[images // batch] - truth).square().mean().sqrt()
    assert (made - truth).square().mean().sqrt() < bound * scale


def test_combine_adds_in_double_and_keeps_the_dtype():
    first, second = {"w": torch.full((3,), 1 + 2**-20)}, {"w": torch.ones(3)}
    made = combine([1e4, -1e4], [first, second])["w"]
    assert made.dtype == torch.float32
    torch.testing.assert_close(made, torch.full((3,), 1e4 * 2**-20), rtol=1e-6, atol=0)
