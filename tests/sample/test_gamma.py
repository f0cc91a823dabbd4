"""Gamma sampling with exact maps: numbers by hand, and a distribution that stays."""

import pytest
import torch
from maps import exact_map

from cmcore.diffusion.jumps import Jumps
from cmcore.diffusion.levels import KarrasUniform
from cmcore.oracles import Gaussian
from cmcore.rng import NoiseSource
from cmcore.sample.fewstep import Multistep
from cmcore.sample.gamma import GammaSampling, StrategicStochastic


@pytest.mark.parametrize(
    ("gamma", "level", "landing"), [(0.5, 1.0, 0.866293), (0.2, 10, 9.797999), (0.9, 0.6, 0.262662)]
)
def test_the_landing_by_hand(gamma: float, level: float, landing: float):
    sampler = GammaSampling((80.0, level), 0.002, gamma)
    s = sampler.landing(level)
    assert s == pytest.approx(landing, abs=1e-6)
    noise = {0.5: 0.499536, 0.2: 1.999802, 0.9: 0.539452}[gamma]
    assert (level**2 - s**2) ** 0.5 == pytest.approx(noise, abs=1e-6)


@pytest.mark.parametrize("gamma", [0.0, 0.4, 1.0])
def test_exact_maps_keep_the_distribution(gamma: float):
    oracle, n = Gaussian(0.3, 1.1), 20_000
    images = GammaSampling((20.0, 2.0, 0.5), 0.002, gamma)(
        Jumps(exact_map(oracle), 0.002), (1, 1, 2), NoiseSource(1, range(n))
    )
    assert float(images.mean()) == pytest.approx(0.3, abs=0.02 + 0.3 / 18)  # pure noise has no mean
    assert float(images.std()) == pytest.approx(1.1, abs=0.02)


def test_its_ends_are_the_deterministic_flow_and_multistep_sampling():
    oracle, jumps = Gaussian(0.3, 1.1), Jumps(exact_map(Gaussian(0.3, 1.1)), 0.002)
    x = 20.0 * NoiseSource(1, range(4)).normal((1, 1, 2))
    found = GammaSampling((20.0, 2.0), 0.002)(jumps, (1, 1, 2), NoiseSource(1, range(4)))
    torch.testing.assert_close(found, oracle.consistency(x, torch.full((4,), 20.0, dtype=torch.float64), 0.002))
    stochastic, multistep = GammaSampling((20.0, 2.0), 0.002, 1.0), Multistep((20.0, 2.0), 0.002)
    a, b = (sampler(jumps, (1, 1, 2), NoiseSource(1, range(4))) for sampler in (stochastic, multistep))
    torch.testing.assert_close(a, b)


@pytest.mark.parametrize(("levels", "gamma"), [((), 0.0), ((1.0, 2.0), 0.0), ((2.0, 0.001), 0.0), ((2.0,), 1.5)])
def test_impossible_settings_are_refused(levels: tuple[float, ...], gamma: float):
    with pytest.raises(ValueError, match="GammaSampling: expected"):
        GammaSampling(levels, 0.002, gamma)


TIMES = KarrasUniform(0.002, 20.0)


def test_strategic_sampling_lands_at_a_share_of_the_time():
    """On a grid of the same warp: a jump on the way to the seventh of ten points lands 30 % lower, between two."""
    lo, hi = 0.002 ** (1 / 7), 20.0 ** (1 / 7)
    sampler = StrategicStochastic((20.0, 2.0), 0.002, 0.3, times=TIMES)
    level = (lo + 0.6 * (hi - lo)) ** 7
    assert sampler.landing(level) == pytest.approx((lo + 0.42 * (hi - lo)) ** 7, rel=1e-9)
    assert sampler.landing(0.002) == pytest.approx(0.002, rel=1e-12)


@pytest.mark.parametrize("gamma", [0.0, 0.3, 1.0])
def test_strategic_sampling_with_exact_maps_keeps_the_distribution(gamma: float):
    oracle, n = Gaussian(0.3, 1.1), 20_000
    sampler = StrategicStochastic((20.0, 2.0, 0.5), 0.002, gamma, times=TIMES)
    images = sampler(Jumps(exact_map(oracle), 0.002), (1, 1, 2), NoiseSource(1, range(n)))
    assert float(images.mean()) == pytest.approx(0.3, abs=0.02 + 0.3 / 18)
    assert float(images.std()) == pytest.approx(1.1, abs=0.02)


def test_the_ends_of_strategic_sampling_are_the_flow_and_multistep_sampling():
    jumps, noise = Jumps(exact_map(Gaussian(0.3, 1.1)), 0.002), NoiseSource(1, range(4))
    none = StrategicStochastic((20.0, 2.0), 0.002, 0.0, times=TIMES)(jumps, (1, 1, 2), noise)
    torch.testing.assert_close(none, GammaSampling((20.0, 2.0), 0.002)(jumps, (1, 1, 2), NoiseSource(1, range(4))))
    full = StrategicStochastic((20.0, 2.0), 0.002, 1.0, times=TIMES)(jumps, (1, 1, 2), NoiseSource(1, range(4)))
    torch.testing.assert_close(full, Multistep((20.0, 2.0), 0.002)(jumps, (1, 1, 2), NoiseSource(1, range(4))))
