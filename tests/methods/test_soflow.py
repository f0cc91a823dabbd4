"""SoFlow: its residual in closed numbers, the exact map, and its limits, flow matching and MeanFlow."""

from contextlib import nullcontext
from typing import Any

import pytest
import torch
from exact import SD, START, data, gain_gradient, nets_of
from maps import exact_map, residual
from tiny import DIFFUSION, make_denoiser, make_method
from torch import Tensor

from cmcore.diffusion.jumps import SECOND_TIME
from cmcore.diffusion.path import Linear
from cmcore.diffusion.precond import Condition, Denoiser, as_condition, with_inputs
from cmcore.methods import soflow
from cmcore.methods.base import Batch, Progress
from cmcore.methods.soflow import SoFlow
from cmcore.oracles import Gaussian
from cmcore.rng import Draws, NoiseSource
from cmcore.sample.settings import Sampling
from cmcore.tensors import expand_like

B = 64


def make(**options: Any) -> SoFlow:
    method = make_method("soflow", **options)
    assert isinstance(method, SoFlow)
    return method


@pytest.mark.parametrize(("gap", "expected"), [(0.1, 0.0382080), (0.05, 0.0168240), (0.01, 0.0030466)])
def test_the_mean_residual_of_the_exact_map(gap: float, expected: float, monkeypatch: pytest.MonkeyPatch):
    def times(_: SoFlow, __: Progress, draws: Draws) -> tuple[Tensor, ...]:
        return tuple(torch.full((draws.batch,), v, dtype=torch.float64) for v in (0.7, 0.7 - gap, 0.2))

    monkeypatch.setattr(SoFlow, "times", times)
    oracle, draws = Gaussian(0.0, SD), Draws(0, 0, 200_000)
    method, batch = make(power=0.0), data(oracle, draws)
    Q = residual(method, exact_map(oracle), batch, START, draws)
    x_t = 0.3 * batch.x + 0.7 * draws.normal((1, 2, 2), stream="noise").double()
    # Q is jointly normal with x_t, so that its mean given x_t = 1 is the slope of the regression.
    slopes = (Q * x_t).mean(dim=(1, 2, 3)) / (x_t**2).mean()
    error = float(slopes.std()) / len(slopes) ** 0.5
    assert error < 0.02
    assert abs(float(slopes.mean()) - expected) < 4 * error


@pytest.mark.parametrize("power", [0.0, 0.75])
def test_the_exact_map_is_a_fixed_point_as_the_gap_closes(power: float):
    oracle, method = Gaussian(0.0, 1.1), make(power=power, first_gap=1e-3, last_gap=1e-3)
    student = exact_map(oracle)
    mean, error = gain_gradient(method, student, oracle, 1.0)
    assert abs(mean) < 4 * error
    mean, error = gain_gradient(method, student, oracle, 0.8)
    assert mean < -10 * error


def test_the_residual_by_its_definition():
    method, draws = make(equal=0.3), Draws(2, 0, B)
    student = make_denoiser(inputs=method.traits.inputs, noise=0.3).double()
    batch, halfway = data(Gaussian(0.1, 0.7), draws), Progress(images=500, total=1000, batch=100)
    t, l, s = method.times(halfway, draws)
    z = draws.normal((1, 2, 2), stream="noise").double()

    def u(x: Tensor, at: Tensor) -> Tensor:
        told = with_inputs(None, **{SECOND_TIME.name: Linear().level(s)})
        D = student(x / expand_like(1 - at, z), Linear().level(at), told)
        return (x - D) / expand_like(at, z)

    with torch.no_grad():
        x_t = Linear().at(t).mix(batch.x, z)
        x_l = x_t + expand_like(l - t, z) * (z - batch.x)
        f_t, f_l = x_t - expand_like(t - s, z) * u(x_t, t), x_l - expand_like(l - s, z) * u(x_l, l)
        Q = torch.where(expand_like(l, z) < expand_like(t, z), (f_t - f_l) / expand_like(t - l, z), 0)
        equal = t == s
        Q[equal] = (z - batch.x - u(x_t, t))[equal]
        weight = ((Q**2).mean(dim=(1, 2, 3)) + 1e-3) ** -0.75
    assert 0 < int(equal.sum()) < B
    expected = torch.autograd.grad(-(expand_like(weight, Q) * u(x_t, t) * Q).mean(), list(student.parameters()))
    loss = method.loss(nets_of(student), batch, halfway, draws).loss.mean()
    found = torch.autograd.grad(loss, list(student.parameters()))
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-9)


def gradient(method: Any, student: Denoiser, batch: Batch, draws: Draws) -> Tensor:
    loss = method.loss(nets_of(student), batch, START, draws).loss.mean()
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(student.parameters()))])


def test_it_starts_as_a_regression_to_the_image():
    method, draws = make(power=0.0), Draws(2, 0, B)
    student = make_denoiser(inputs=method.traits.inputs, noise=0.3).double()
    batch = data(Gaussian(0.0, SD), draws)
    t, l, s = method.times(START, draws)
    torch.testing.assert_close(l, s, rtol=0, atol=1e-12)
    z, sigma = draws.normal((1, 2, 2), stream="noise").double(), Linear().level(t)
    D = student(batch.x + expand_like(sigma, z) * z, sigma, with_inputs(None, s=Linear().level(s)))
    expected = ((D - batch.x) / expand_like(t, z)).detach()
    torch.testing.assert_close(residual(method, student, batch, START, draws), expected)


def test_rows_of_equal_times_are_flow_matching():
    draws = Draws(2, 0, B)
    student = make_denoiser(inputs=(SECOND_TIME,), noise=0.3).double()
    batch = data(Gaussian(0.0, SD), draws)
    method = make(equal=1.0, power=0.0, P_mean=-0.6)
    flow = make_method("rf", times="logit_normal", P_mean=-0.6, P_std=1.6)
    found, expected = (gradient(m, student, batch, draws) for m in (method, flow))
    torch.testing.assert_close(2 * found, expected)


@pytest.mark.parametrize("equal", [0.0, 0.25])
def test_its_limit_is_meanflow(equal: float, monkeypatch: pytest.MonkeyPatch):
    """As the gap closes: the same gradient, but for a mean over the pixels and the 2 of a square."""
    monkeypatch.setattr(soflow, "LEAST_GAP", 1e-7)
    monkeypatch.setattr("cmcore.methods.meanflow.END", SECOND_TIME.name)
    draws, student = Draws(2, 0, B), make_denoiser(inputs=(SECOND_TIME,), noise=0.3).double()
    batch = data(Gaussian(0.0, SD), draws)
    shared = {"P_mean": -0.6, "end_mean": -4.0, "equal": equal, "power": 0.0}
    expected = gradient(make_method("meanflow", **shared), student, batch, draws)

    def distance(gap: float) -> float:
        found = gradient(make(first_gap=gap, last_gap=gap, **shared), student, batch, draws)
        return float((2 * 4 * found - expected).norm() / expected.norm())

    assert distance(1e-5) < 1e-4
    assert distance(1e-5) < 0.2 * distance(1e-4)
    assert distance(0.5) > 1e-2


def test_both_points_share_the_dropout_mask(monkeypatch: pytest.MonkeyPatch):
    method, draws = make(power=0.0, first_gap=1e-4, last_gap=1e-4), Draws(1, 0, B)
    student = make_denoiser(inputs=method.traits.inputs, noise=0.3, dropout=0.5).train()
    batch = data(Gaussian(0.0, SD), draws)
    batch = batch._replace(x=batch.x.float())

    def error() -> float:
        return float(method.loss(nets_of(student), batch, START, draws).scalars["error"])

    shared = error()
    monkeypatch.setattr(Draws, "dropout", lambda _: nullcontext())
    torch.manual_seed(0)
    assert shared < 1e-2 * error()


def test_the_times():
    method, draws = make(equal=0.25), Draws(0, 0, 100_000)
    first = DIFFUSION.sigma_min / (1 + DIFFUSION.sigma_min)
    for images in (0, 500, 999):
        progress = Progress(images=images, total=1000, batch=1)
        t, l, s = method.times(progress, draws)
        same = t == s
        assert float(same.double().mean()) == pytest.approx(0.25, abs=0.01)
        assert torch.equal(l[same], t[same])
        t, l, s = (v[~same] for v in (t, l, s))
        assert bool((t >= first).all() & (s >= first - 1e-4).all() & (s <= l + 1e-15).all() & (l <= t - 1e-4).all())
        wide = (t - s) * method.gap(progress) > 1e-4
        torch.testing.assert_close(((t - l) / (t - s))[wide], torch.full_like(t[wide], method.gap(progress)))
        assert float((t / (1 - t)).log().median()) == pytest.approx(-0.9, abs=0.03)
        # Where the proposal of s is above t: of ln sigma, a difference of N(-3.1, 2 * 1.6^2) above 0.
        assert float((s > t - 1.001e-4).double().mean()) == pytest.approx(0.0854, abs=0.01)
    assert method.gap(START) == 1.0
    assert method.gap(Progress(images=500, total=1000, batch=1)) == pytest.approx(3.125e-4**0.5)


def test_every_jump_goes_to_the_end_and_noise_brings_it_back():
    method, oracle, told = make(), Gaussian(0.2, 0.8), []
    rows = method.samplers(Sampling(diffusion=method.diffusion, steps=3, two_step=0.8))
    assert [row.nfe for row in rows] == [1, 2, 4]
    for row in rows:
        images = row(method.model(exact_map(oracle)), (1, 2, 2), NoiseSource(0, range(4000)))
        assert float(images.mean()) == pytest.approx(0.2, abs=0.03)
        assert float(images.std()) == pytest.approx(0.8, abs=0.03)

    def jumps(x: Tensor, sigma: Tensor, labels: Condition) -> Tensor:
        told.append((float(sigma[0]), float(as_condition(labels).inputs["s"][0])))
        return x

    rows[2](jumps, (1, 2, 2), NoiseSource(0, range(3)))
    levels, ends = zip(*told, strict=True)
    assert ends == (0.002,) * 4
    times = [level / (1 + level) for level in levels]
    assert times == pytest.approx([20 / 21 * share for share in (1, 0.75, 0.5, 0.25)])
