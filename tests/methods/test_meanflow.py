"""MeanFlow: the exact map, the derivative in its target, and its limits."""

import pytest
import torch
from exact import START, data, exact_map, gain_gradient, nets_of
from tiny import DIFFUSION, make_denoiser, make_method
from torch import Tensor

from cmcore.diffusion.path import Linear
from cmcore.diffusion.precond import Condition, Denoiser, as_condition, with_inputs
from cmcore.diffusion.settings import DiffusionConfig
from cmcore.methods.meanflow import END, MeanFlow
from cmcore.oracles import Gaussian
from cmcore.rng import Draws, NoiseSource
from cmcore.sample.settings import Sampling
from cmcore.tensors import expand_like, sum_per_sample

B = 64
# For N(0, 1/4) at x_t = 1: t, r, the average velocity, and the loss a pixel of the exact one, s^2 V(r)/V(t)^2.
VECTORS = [
    (0.9, 0.8, 1.055728, 0.246154), (0.7, 0.2, 0.750610, 0.190363), (0.5, 0.0, 0.211146, 0.640000),
    (0.3, 0.1, 0.0, 1.176471),
]  # fmt: skip


def make(diffusion: DiffusionConfig = DIFFUSION, **options: float) -> MeanFlow:
    method = make_method("meanflow", diffusion, **options)
    assert isinstance(method, MeanFlow)
    return method


def end_of(sigma: Tensor, condition: Condition) -> Tensor:
    del sigma
    return (4 * condition.inputs[END]).exp()


def exact(oracle: Gaussian) -> Denoiser:
    return exact_map(oracle, end_of, make().traits.inputs)


def held(t: float, r: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every row at these times; an r of 0 is as near to it as the coordinate goes."""
    times = torch.tensor([t, max(r, 1e-6)], dtype=torch.float64)
    sigma, end = Linear().level(times).tolist()

    def levels(_: MeanFlow, draws: Draws) -> tuple[Tensor, Tensor]:
        return torch.full((draws.batch,), sigma).double(), torch.full((draws.batch,), end).double()

    monkeypatch.setattr(MeanFlow, "levels", levels)


@pytest.mark.parametrize(("t", "r", "u", "floor"), VECTORS)
def test_the_exact_average_velocity_and_its_loss(
    t: float, r: float, u: float, floor: float, monkeypatch: pytest.MonkeyPatch
):
    oracle, one = Gaussian(0.0, 0.5), torch.ones(1, dtype=torch.float64)
    sigma, end = (Linear().level(time * one) for time in (t, max(r, 1e-6)))
    D = exact(oracle)(one.reshape(1, 1, 1, 1) / (1 - t), sigma, with_inputs(None, **{END: end}))
    assert (1 - D.item()) / t == pytest.approx(u, abs=2e-6)
    held(t, r, monkeypatch)
    draws = Draws(0, 0, 40_000)
    loss = make(power=0.0).loss(nets_of(exact(oracle)), data(oracle, draws), START, draws).loss.detach() / 4
    assert abs(float(loss.mean()) - floor) < 5 * float(loss.std()) / len(loss) ** 0.5


@pytest.mark.parametrize("power", [0.0, 0.75])
def test_the_exact_map_is_a_fixed_point(power: float):
    oracle, method = Gaussian(0.0, 1.1), make(power=power)
    student = exact(oracle)

    mean, error = gain_gradient(method, student, oracle, 1.0)
    assert abs(mean) < 4 * error
    mean, error = gain_gradient(method, student, oracle, 0.8)
    assert mean < -10 * error


def test_the_target_by_central_differences():
    method, draws = make(power=0.0), Draws(2, 0, B)
    student = make_denoiser(inputs=method.traits.inputs, noise=0.3).double()
    batch = data(Gaussian(0.0, 0.7), draws)
    loss = method.loss(nets_of(student), batch, START, draws).loss.detach()
    sigma, end = method.levels(draws)
    t, r = Linear().time(sigma), Linear().time(end)
    z = draws.normal((1, 2, 2), stream="noise").double()

    def u(at: Tensor) -> Tensor:
        x_t = Linear().at(at).mix(batch.x, z)
        D = student(x_t / expand_like(1 - at, z), Linear().level(at), with_inputs(None, **{END: end}))
        return (x_t - D) / expand_like(at, z)

    with torch.no_grad():
        h = 1e-4 * t * (1 - t)
        derivative = (u(t + h) - u(t - h)) / expand_like(2 * h, z)
        expected = sum_per_sample((u(t) - (z - batch.x) + expand_like(t - r, z) * derivative) ** 2)
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-6)
    assert bool((r < t).any() & (r == t).any())


def test_rows_of_equal_times_are_flow_matching():
    method, draws = make(equal=1.0, power=0.0), Draws(2, 0, B)
    student = make_denoiser(inputs=method.traits.inputs, noise=0.3)
    batch = data(Gaussian(0.0, 0.5), draws)
    batch = batch._replace(x=batch.x.float())
    loss = method.loss(nets_of(student), batch, START, draws).loss.detach()
    flow = make_method("rf", times="logit_normal", P_mean=-0.6, P_std=1.6)
    torch.testing.assert_close(loss / 4, flow.loss(nets_of(student), batch, START, draws).loss.detach())


def test_a_power_of_one_makes_every_loss_one():
    draws = Draws(2, 0, B)
    method = make(power=1.0, eps=1e-12)
    student = make_denoiser(inputs=method.traits.inputs, noise=0.3)
    loss = method.loss(nets_of(student), data(Gaussian(0.0, 0.5), draws), START, draws).loss.detach()
    torch.testing.assert_close(loss, torch.ones_like(loss))


def test_jumps_end_where_the_network_is_told():
    method, oracle = make(), Gaussian(0.2, 0.8)
    x_T, told = 20 * NoiseSource(0, range(3)).normal((1, 2, 2)), []
    start = torch.full((3,), 20.0, dtype=torch.float64)
    rows = method.samplers(Sampling(diffusion=method.diffusion, steps=3, two_step=0.8))
    assert [row.nfe for row in rows] == [1, 2, 4]
    for row in rows:
        images = row.from_noise(exact(oracle), x_T, NoiseSource(0, range(3)))
        torch.testing.assert_close(images, oracle.flow(x_T, start, 0 * start + 0.002), rtol=1e-9, atol=1e-9)

    def denoiser(x: Tensor, sigma: Tensor, labels: Condition) -> Tensor:
        told.append((float(sigma[0]), float(as_condition(labels).inputs[END][0])))
        return oracle.denoise(x, sigma)

    rows[1].from_noise(denoiser, x_T, NoiseSource(0, range(3)))
    (high, middle), (again, low) = told
    assert (high, low) == (20.0, 0.002)
    assert middle == again
    assert middle / (1 + middle) == pytest.approx((20 / 21 + 0.002 / 1.002) / 2)


def test_the_proposal_of_times():
    sigma, end = make().levels(Draws(0, 0, 100_000))
    assert bool((end <= sigma).all() & (end >= 0.002).all())
    assert float(sigma.log().median()) == pytest.approx(-0.6, abs=0.03)
    assert float((end == sigma).double().mean()) == pytest.approx(0.25 + 0.75 * 0.067, abs=0.01)
    t, r = Linear().time(sigma), Linear().time(end)
    assert float(t.mean()) == pytest.approx(0.399, abs=0.004)
    assert float(r[end < sigma].mean()) < 0.06
