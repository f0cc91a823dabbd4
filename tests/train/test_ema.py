"""Averages of the weights against their closed forms."""

import math

import pytest
import torch
from tiny import batches, flat, make_method, make_state, make_train

from cmcore.config import ConfigError, read
from cmcore.train import ema
from cmcore.train.settings import EmaConfig, TrainConfig
from cmcore.train.steps import steps


@pytest.mark.parametrize(("std", "gamma"), [(0.10, 6.94), (0.05, 16.97)])
def test_the_exponent_of_the_published_profiles(std: float, gamma: float):
    assert ema.power_exponent(std) == pytest.approx(gamma, abs=5e-3)
    g = ema.power_exponent(std)
    assert math.sqrt((g + 1) / ((g + 2) ** 2 * (g + 3))) == pytest.approx(std, rel=1e-9)


def average_of_steps(profile: EmaConfig, count: int, batch: int = 10) -> torch.Tensor:
    """The share (count,) that the weights after every step have in the average, by feeding unit vectors."""
    average = [torch.zeros(count, dtype=torch.float64)]
    for step in range(1, count + 1):
        now = torch.zeros(count, dtype=torch.float64)
        now[step - 1] = 1
        ema.update(average, [now], ema.decay(profile, step * batch, batch))
    return average[0]


def test_after_one_half_life_half_of_the_start_is_left():
    profile = EmaConfig(half_life=400, ramp=0)
    average, current = [torch.ones(3, dtype=torch.float64)], [torch.zeros(3, dtype=torch.float64)]
    for step in range(1, 41):
        ema.update(average, current, ema.decay(profile, step * 10, 10))
    torch.testing.assert_close(average[0], torch.full((3,), 0.5, dtype=torch.float64), rtol=1e-12, atol=0)
    shares = average_of_steps(profile, 100)
    assert float(shares[-40:].sum()) == pytest.approx(0.5, rel=1e-12)
    # The batch does not bend it: the same images in steps of 40 decay as much.
    assert ema.decay(profile, 400, 40) == pytest.approx(ema.decay(profile, 400, 10) ** 4, rel=1e-12)


def test_the_ramp_bounds_the_half_life_by_a_share_of_the_run():
    profile = EmaConfig(half_life=1000, ramp=0.05)
    # EDM's code counts the images before the step (training_loop.py: cur_nimg grows after the update).
    assert ema.decay(profile, 10_010, 10) == pytest.approx(0.5 ** (10 / 500), rel=1e-12)
    assert ema.decay(profile, 20_010, 10) == ema.decay(profile, 90_000, 10) == pytest.approx(0.5 ** (10 / 1000))
    assert ema.decay(profile, 10, 10) == 0  # the first step forgets the random start


@pytest.mark.parametrize("std", [0.05, 0.10, 0.2])
def test_a_power_profile_has_the_shape_and_width_it_is_named_for(std: float):
    count = 4000
    shares = average_of_steps(EmaConfig(power_std=std), count)
    tau = (torch.arange(count, dtype=torch.float64) + 0.5) / count
    gamma = ema.power_exponent(std)
    expected = (gamma + 1) * tau**gamma / count  # arXiv 2312.02696, Eq. 121
    torch.testing.assert_close(shares, expected, rtol=0, atol=2e-2 * float(expected.max()))
    assert float(shares.sum()) == pytest.approx(1, rel=1e-9)
    mean = float((shares * tau).sum())
    assert math.sqrt(float((shares * (tau - mean) ** 2).sum())) == pytest.approx(std, rel=5e-3)


def test_several_profiles_follow_one_run_and_each_is_its_own():
    profiles = {
        "fast": EmaConfig(half_life=64, ramp=0),
        "slow": EmaConfig(half_life=640, ramp=0),
        "power": EmaConfig(power_std=0.1),
    }
    method, config = make_method("edm"), make_train(ema=profiles, eval_ema="slow", lr=1e-2)
    state = make_state(method, config)
    tracked = {name: flat(state.parameters).double() for name in profiles}
    start = flat(state.parameters)
    for record in steps(state, method, batches, config):
        for name, profile in profiles.items():
            beta = ema.decay(profile, record.images, config.batch)
            tracked[name] = beta * tracked[name] + (1 - beta) * flat(state.parameters).double()
    for name, expected in tracked.items():
        torch.testing.assert_close(flat(state.ema[name]).double(), expected, rtol=1e-4, atol=1e-6)
    moved = {name: float((flat(state.ema[name]) - start).norm()) for name in profiles}
    assert 0 < moved["slow"] < moved["fast"] < float((flat(state.parameters) - start).norm())
    weights = state.weights("slow")
    assert weights.keys() == state.nets.student.net.state_dict().keys()
    assert torch.equal(flat(weights[n] for n, _ in state.nets.student.net.named_parameters()), flat(state.ema["slow"]))
    assert torch.equal(state.weights()["input.weight"], dict(state.nets.student.net.named_parameters())["input.weight"])


@pytest.mark.parametrize(
    ("data", "field"),
    [
        ({}, "half_life"),
        ({"half_life": 1, "power_std": 0.1}, "half_life"),
        ({"half_life": -1, "power_std": 0.1}, "half_life"),
        ({"power_std": 0.29}, "power_std"),
        ({"half_life": 5, "ramp": -0.1}, "ramp"),
        ({"half_life": 5, "power_std": -1}, "power_std"),
    ],
)
def test_impossible_profiles_are_refused_by_name(data: dict[str, float], field: str):
    with pytest.raises(ConfigError) as caught:
        read(EmaConfig, data)
    assert caught.value.path == field


def test_the_evaluated_profile_must_exist():
    read(TrainConfig, {"images": 8, "batch": 8, "eval_ema": "raw"})
    with pytest.raises(ConfigError, match=r"eval_ema: expected one of raw, ema, got 'x'"):
        read(TrainConfig, {"images": 8, "batch": 8, "eval_ema": "x"})
    with pytest.raises(ConfigError, match="other than 'raw'"):
        read(TrainConfig, {"images": 8, "batch": 8, "ema": {"raw": {"half_life": 5}}, "eval_ema": "raw"})
