"""Improved MeanFlow: the exact map, its floor, the derivative in its compound function, and MeanFlow beside it."""

from typing import Any

import pytest
import torch
from exact import START, data, exact_map, gain_gradient, nets_of
from tiny import make_denoiser, make_method
from torch import Tensor

from cmcore.consistency.tangents import total_derivative
from cmcore.diffusion.jumps import SECOND_TIME
from cmcore.diffusion.path import Linear
from cmcore.diffusion.precond import Condition, Denoiser, with_inputs
from cmcore.methods.imf import IMF
from cmcore.oracles import Gaussian
from cmcore.rng import Draws, NoiseSource
from cmcore.sample.settings import Sampling
from cmcore.tensors import expand_like, sum_per_sample

B = 64


def make(**options: Any) -> IMF:
    method = make_method("imf", **options)
    assert isinstance(method, IMF)
    return method


def end_of(sigma: Tensor, condition: Condition) -> Tensor:
    del sigma
    return (4 * condition.inputs[SECOND_TIME.name]).exp()


def exact(oracle: Gaussian) -> Denoiser:
    return exact_map(oracle, end_of, (SECOND_TIME,))


@pytest.mark.parametrize("s", [0.5, 1.1])
def test_the_compound_function_of_the_exact_map_is_the_velocity(s: float):
    """So each row's expected loss is the variance of the velocity given x_t, s^2/V(t) a pixel, whatever r is."""
    oracle, method, draws = Gaussian(0.0, s), make(power=0.0, equal=0.3), Draws(0, 0, 40_000)
    loss = method.loss(nets_of(exact(oracle)), data(oracle, draws), START, draws).loss.detach() / 4
    sigma, end = method.levels(draws)
    t = Linear().time(sigma)
    floor = s**2 / ((1 - t) ** 2 * s**2 + t**2)
    for rows in (sigma > end, sigma == end, sigma > 10 * end):
        excess = (loss - floor)[rows]
        assert abs(float(excess.mean())) < 4 * float(excess.std()) / len(excess) ** 0.5
        assert float(excess.std()) / len(excess) ** 0.5 < 0.05 * float(floor.mean())


@pytest.mark.parametrize("power", [0.0, 1.0])
def test_the_exact_map_is_a_fixed_point(power: float):
    oracle, method = Gaussian(0.0, 1.1), make(power=power)
    student = exact(oracle)
    mean, error = gain_gradient(method, student, oracle, 1.0)
    assert abs(mean) < 4 * error
    mean, error = gain_gradient(method, student, oracle, 0.8)
    assert mean < -10 * error


def test_the_compound_function_by_central_differences():
    method, draws = make(power=0.0), Draws(2, 0, B)
    student = make_denoiser(inputs=method.traits.inputs, noise=0.3).double()
    batch = data(Gaussian(0.0, 0.7), draws)
    loss = method.loss(nets_of(student), batch, START, draws).loss.detach()
    sigma, end = method.levels(draws)
    t, r = Linear().time(sigma), Linear().time(end)
    z = draws.normal((1, 2, 2), stream="noise").double()

    def u(x: Tensor, at: Tensor, to: Tensor) -> Tensor:
        told = with_inputs(None, **{SECOND_TIME.name: Linear().level(to)})
        return (x - student(x / expand_like(1 - at, z), Linear().level(at), told)) / expand_like(at, z)

    with torch.no_grad():
        x, h = Linear().at(t).mix(batch.x, z), 1e-4 * t * (1 - t)
        step = expand_like(h, z) * u(x, t, t)
        derivative = (u(x + step, t + h, r) - u(x - step, t - h, r)) / expand_like(2 * h, z)
        V = u(x, t, r) + expand_like(t - r, z) * derivative
        expected = sum_per_sample((V - (z - batch.x)) ** 2)
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-6)
    assert bool((r < t).any() & (r == t).any())


def test_with_the_direction_of_the_sample_it_is_meanflow(monkeypatch: pytest.MonkeyPatch):
    """The two differ in the direction of the derivative alone, and not at all where r = t."""
    draws, student = Draws(2, 0, B), make_denoiser(inputs=(SECOND_TIME,), noise=0.3).double()
    batch, method = data(Gaussian(0.0, 0.5), draws), make(power=0.0)
    meanflow = make_method("meanflow", power=0.0, eps=0.01)
    monkeypatch.setattr("cmcore.methods.meanflow.END", SECOND_TIME.name)
    monkeypatch.setattr(type(meanflow), "levels", lambda _, draws: method.levels(draws))
    expected = meanflow.loss(nets_of(student), batch, START, draws).loss.detach()
    sigma, end = method.levels(draws)
    found = method.loss(nets_of(student), batch, START, draws).loss.detach()
    assert torch.equal(found[sigma == end], expected[sigma == end])
    assert not bool(torch.isclose(found, expected)[sigma > end].any())

    class Told(Denoiser):
        """Gives the image itself, for the direction."""

        def forward(self, *_: object) -> Tensor:
            return batch.x

    told = Told(student.net, sigma_data=0.5, inputs=(SECOND_TIME,))
    monkeypatch.setattr("cmcore.methods.imf.total_derivative", lambda _, *rest: total_derivative(student, *rest))
    torch.testing.assert_close(method.loss(nets_of(told), batch, START, draws).loss.detach(), expected)


def test_a_power_of_one_makes_every_loss_one():
    draws, method = Draws(2, 0, B), make(eps=1e-12)
    student = make_denoiser(inputs=method.traits.inputs, noise=0.3)
    loss = method.loss(nets_of(student), data(Gaussian(0.0, 0.5), draws), START, draws).loss.detach()
    torch.testing.assert_close(loss, torch.ones_like(loss))


def test_jumps_land_on_the_flow():
    method, oracle = make(), Gaussian(0.2, 0.8)
    x_T, start = 20 * NoiseSource(0, range(3)).normal((1, 2, 2)), torch.full((3,), 20.0, dtype=torch.float64)
    rows = method.samplers(Sampling(diffusion=method.diffusion, steps=3, two_step=0.8))
    assert [row.nfe for row in rows] == [1, 2, 4]
    for row in rows:
        images = row.from_noise(exact(oracle), x_T, NoiseSource(0, range(3)))
        torch.testing.assert_close(images, oracle.flow(x_T, start, 0 * start + 0.002), rtol=1e-9, atol=1e-9)


def test_the_proposal_of_times():
    sigma, end = make().levels(Draws(0, 0, 100_000))
    assert bool((end <= sigma).all() & (end >= 0.002).all())
    same = sigma == end
    assert float(same.double().mean()) == pytest.approx(0.5, abs=0.01)
    # The larger and the smaller of two normal numbers lie 1/sqrt(pi) standard deviations from their mean.
    assert float(sigma.log().mean()) == pytest.approx(-0.4 + 0.5642, abs=0.02)
    assert float(end[~same].log().mean()) == pytest.approx(-0.4 - 0.5642, abs=0.02)
