"""Flow maps by self-distillation: their three equations on the exact map, and which method is the limit of which."""

from typing import Any

import pytest
import torch
from exact import SD, START, TwoNumbers, data, exact_map, nets_of
from tiny import DIFFUSION, make_denoiser, make_method
from torch import Tensor

from cmcore.consistency.tangents import end_derivative, total_derivative
from cmcore.consistency.weights import PairWeight
from cmcore.diffusion.jumps import SECOND_TIME
from cmcore.diffusion.path import Linear
from cmcore.diffusion.precond import Condition, Denoiser, with_inputs
from cmcore.diffusion.settings import DiffusionConfig
from cmcore.methods.base import Batch, Nets
from cmcore.methods.flowmap import WEIGHT, FlowMaps
from cmcore.methods.shortcut import Shortcut
from cmcore.oracles import Gaussian
from cmcore.rng import Draws, NoiseSource
from cmcore.sample.settings import Sampling
from cmcore.tensors import expand_like, mean_per_sample

B = 64
OBJECTIVES = ("lagrangian", "eulerian", "progressive")
every_objective = pytest.mark.parametrize("objective", OBJECTIVES)


def make(diffusion: DiffusionConfig = DIFFUSION, **options: Any) -> FlowMaps:
    method = make_method("flowmap", diffusion, **{"weighting": "none", **options})
    assert isinstance(method, FlowMaps)
    return method


def end_of(sigma: Tensor, condition: Condition) -> Tensor:
    del sigma
    return (4 * condition.inputs[SECOND_TIME.name]).exp()


def exact(oracle: Gaussian) -> Denoiser:
    return exact_map(oracle, end_of, (SECOND_TIME,))


def wrong() -> Denoiser:
    return make_denoiser(inputs=(SECOND_TIME,), noise=0.3).double()


def off(method: FlowMaps, student: Denoiser, t: Tensor, m: Tensor, r: Tensor, x_t: Tensor) -> Tensor:
    """The error (B,) of the equation at x_t of the linear path."""
    x, sigma = x_t / expand_like(1 - t, x_t), Linear().level(t)
    D = student(x, sigma, with_inputs(None, **{SECOND_TIME.name: Linear().level(r)}))
    return method.off_diagonal(student, D, x, t, m, r, None, Draws(0, 0, len(t)))


def points(seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """t > r, and states x_t."""
    draws = Draws(seed, 0, B)
    a, b = (0.02 + 0.93 * draws.uniform(stream=stream) for stream in "ab")
    return torch.maximum(a, b) + 0.02, torch.minimum(a, b), draws.normal((1, 2, 2), stream="x", dtype=torch.float64)


@every_objective
def test_every_equation_holds_for_the_exact_map_and_no_other(objective: str):
    t, r, x_t = points()
    for s in (0.5, 1.1):
        student, method = exact(Gaussian(0.2, s)), make(objective=objective)
        assert float(off(method, student, t, (t + r) / 2, r, x_t).detach().max()) < 1e-16
        student.net.gain.data.fill_(0.8)
        if s != SD:  # where F is zero, no gain is wrong
            assert float(off(method, student, t, (t + r) / 2, r, x_t).detach().median()) > 1e-5


def test_the_closed_numbers():
    student, one = exact(Gaussian(0.0, 0.5)), torch.ones(1, dtype=torch.float64)
    t, r, x = 0.9 * one, 0.4 * one, torch.ones(1, 1, 1, 1, dtype=torch.float64)
    sigma, end = Linear().level(t), Linear().level(r)
    D, by_end = end_derivative(student, x / 0.1, sigma, SECOND_TIME.name, end)
    u, slope = (x - D) / 0.9, -by_end / 0.9 / 0.6**2
    assert u.item() == pytest.approx(0.8905996, abs=1e-7)
    assert (x - 0.5 * u).item() == pytest.approx(0.5547002, abs=1e-7)
    assert (u - 0.5 * slope).item() == pytest.approx(0.5547002, abs=1e-7)  # dX/dr, which is v(X, r)


@every_objective
def test_the_exact_map_is_a_fixed_point(objective: str):
    oracle, method = Gaussian(0.0, 1.1), make(objective=objective, every=2)
    student = exact(oracle)
    gradients = {1.0: [], 0.8: []}
    for gain, found in gradients.items():
        student.net.gain.data.fill_(gain)
        for seed in range(30):
            draws = Draws(seed, 0, 500)
            loss = method.loss(nets_of(student), data(oracle, draws), START, draws).loss.mean()
            found.append(torch.autograd.grad(loss, student.net.gain)[0])
    right, off_it = (torch.stack(found) for found in gradients.values())
    assert abs(float(right.mean())) < 4 * float(right.std()) / 30**0.5
    assert float(off_it.mean()) < -10 * float(off_it.std()) / 30**0.5


@every_objective
def test_the_equations_by_central_differences(objective: str):
    student, (t, r, x_t) = wrong(), points()
    m = r + 0.3 * (t - r)

    def u(x: Tensor, at: Tensor, to: Tensor) -> Tensor:
        told = with_inputs(None, **{SECOND_TIME.name: Linear().level(to)})
        return (x - student(x / expand_like(1 - at, x), Linear().level(at), told)) / expand_like(at, x)

    def X(x: Tensor, at: Tensor, to: Tensor) -> Tensor:  # noqa: N802 (the paper's name)
        return x - expand_like(at - to, x) * u(x, at, to)

    with torch.no_grad():
        if objective == "lagrangian":
            h = 1e-4 * r * (1 - r)
            slope = (X(x_t, t, r + h) - X(x_t, t, r - h)) / expand_like(2 * h, x_t)
            residual = slope - u(X(x_t, t, r), r, r)
        elif objective == "eulerian":
            h = 1e-4 * t * (1 - t)
            step = expand_like(h, x_t) * u(x_t, t, t)
            residual = (X(x_t + step, t + h, r) - X(x_t - step, t - h, r)) / expand_like(2 * h, x_t)
        else:
            residual = (X(x_t, t, r) - X(X(x_t, t, m), m, r)) / expand_like(t - r, x_t)
        expected = mean_per_sample(residual**2)
    found = off(make(objective=objective), student, t, m, r, x_t).detach()
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-8)


@pytest.mark.parametrize(("limit", "side"), [("lagrangian", "end"), ("eulerian", "start")])
def test_the_limits_of_progressive_jumps_are_the_other_two(limit: str, side: str):
    """As the second of two jumps becomes short the equation is the Lagrangian one, as the first does the Eulerian."""
    student, (t, r, x_t) = wrong(), points()
    expected = off(make(objective=limit), student, t, t, r, x_t).detach()

    def distance(share: float) -> float:
        m = r + share * (t - r) if side == "end" else t - share * (t - r)
        found = off(make(objective="progressive"), student, t, m, r, x_t).detach() / share**2
        return float(((found - expected).abs() / (expected + 1e-3)).median())

    assert distance(1e-4) < 1e-2
    assert distance(1e-4) < 0.2 * distance(1e-3)


def test_half_way_jumps_are_those_of_shortcut_models():
    """The target of PSD-M, and of a bootstrapped row with the student's own weights."""
    shortcut = make_method("shortcut", steps=8)
    assert isinstance(shortcut, Shortcut)
    student = Denoiser(TwoNumbers(), sigma_data=SD, inputs=(SECOND_TIME, *shortcut.traits.inputs))
    k = torch.tensor([0, 1, 1, 2])
    t = shortcut.way * torch.tensor([1.0, 1.0, 0.5, 0.75], dtype=torch.float64)
    x_t = torch.randn(4, 1, 2, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x, r = x_t / expand_like(1 - t, x_t), (t - shortcut.way / 2.0**k).clamp(min=1e-12)
    target = shortcut.bootstrap(nets_of(student, target=student), x, k, t, None)
    D = student(x, Linear().level(t))
    expected = mean_per_sample((D - target) ** 2) / t**2
    torch.testing.assert_close(off(make(objective="progressive"), student, t, (t + r) / 2, r, x_t), expected)


def test_the_eulerian_equation_with_the_sample_s_velocity_is_meanflow(monkeypatch: pytest.MonkeyPatch):
    student, (t, r, x_t) = wrong(), points()
    z = torch.randn(x_t.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    image, told = (x_t - expand_like(t, z) * z) / expand_like(1 - t, z), make_method("meanflow", power=0.0)
    monkeypatch.setattr("cmcore.methods.meanflow.END", SECOND_TIME.name)
    monkeypatch.setattr(type(told), "levels", lambda *_: (Linear().level(t), Linear().level(r)))
    monkeypatch.setattr(Draws, "normal", lambda *_, **__: z)
    expected = told.loss(nets_of(student), Batch(image, None), START, Draws(0, 0, B)).loss.detach() / 4

    class Told(Denoiser):
        """Gives the image itself, for the velocity."""

        def forward(self, *_: object) -> Tensor:
            return image

    monkeypatch.setattr("cmcore.methods.flowmap.total_derivative", lambda _, *rest: total_derivative(student, *rest))
    found = off(make(objective="eulerian"), Told(student.net, sigma_data=SD, inputs=(SECOND_TIME,)), t, t, r, x_t)
    torch.testing.assert_close(found.detach(), expected, rtol=1e-6, atol=1e-9)


def test_to_the_end_the_eulerian_equation_is_that_of_consistency_models():
    """With r = 0 the map is D, which stays the same along the flow."""
    student, (t, _, x_t) = wrong(), points()
    r, x, sigma = 0 * t + 1e-9, x_t / expand_like(1 - t, x_t), Linear().level(t)
    told = with_inputs(None, **{SECOND_TIME.name: sigma})
    dx = (x - student(x, sigma, told)) / expand_like(sigma, x)
    _, dD = total_derivative(student, x, sigma, dx.detach(), with_inputs(None, **{SECOND_TIME.name: 0 * t + 1e-9}))
    expected = mean_per_sample(dD**2) / (1 - t) ** 4
    torch.testing.assert_close(off(make(objective="eulerian"), student, t, t, r, x_t).detach(), expected)


@every_objective
def test_gradients_pass_through_one_side_alone(objective: str):
    """The other side is constant: its gradient would be found in a loss with the sides of the equation exchanged."""
    student, (t, r, x_t) = wrong(), points()
    method, m = make(objective=objective), (t + r) / 2
    parameters = list(student.parameters())
    found = torch.autograd.grad(off(method, student, t, m, r, x_t).mean(), parameters)
    frozen = wrong()
    x, path, name = x_t / expand_like(1 - t, x_t), Linear(), SECOND_TIME.name
    sigma, middle, end = (path.level(v) for v in (t, m, r))

    def D(net: Denoiser, x: Tensor, at: Tensor, to: Tensor) -> Tensor:  # noqa: N802
        return net(x, at, with_inputs(None, **{name: to}))

    if objective == "lagrangian":
        value, by_end = end_derivative(student, x, sigma, name, end)
        moving = -value / expand_like(t, x) + expand_like((1 - r / t) / (1 - r) ** 2, x) * by_end
        X = expand_like(end / sigma, x) * x + expand_like(1 - end / sigma, x) * D(frozen, x, sigma, end)
        constant = (D(frozen, x, sigma, end) - D(frozen, X, end, end)) / expand_like(r, x)
        constant = constant - D(frozen, x, sigma, end) / expand_like(t, x)
        residual = moving - constant.detach()
    elif objective == "eulerian":
        D_t = D(frozen, x, sigma, sigma)
        direction = ((x - D_t) / expand_like(sigma, x)).detach()
        _, dD = total_derivative(frozen, x, sigma, direction, with_inputs(None, **{name: end}))
        kept = D(frozen, x, sigma, end)
        known = expand_like(1 - r / t, x) * (kept - D_t) - expand_like((t - r) / (1 - t) ** 2, x) * dD + D_t
        residual = (D(student, x, sigma, end) - known.detach()) / expand_like(t, x)
    else:
        first = D(frozen, x, sigma, middle)
        x_m = x + expand_like(middle / sigma - 1, x) * (x - first)
        x_r = x_m + expand_like(end / middle - 1, x) * (x_m - D(frozen, x_m, middle, end))
        target = x + expand_like(sigma / (sigma - end), x) * (x_r - x)
        residual = (D(student, x, sigma, end) - target.detach()) / expand_like(t, x)
    expected = torch.autograd.grad(mean_per_sample(residual**2).mean(), parameters)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-9)


def test_most_rows_are_flow_matching_and_the_weight_balances_both():
    oracle, draws = Gaussian(0.1, 0.7), Draws(2, 0, B)
    method, student, batch = make(), wrong(), data(oracle, draws)
    plain = method.loss(nets_of(student), batch, START, draws)
    t, _, r = method.times(draws)
    assert torch.equal((r < t).nonzero().flatten(), torch.arange(3, B, 4))
    flow = make_method("rf").loss(nets_of(student), batch, START, draws).loss
    torch.testing.assert_close(plain.loss[r == t].detach(), flow[r == t].detach())
    weight = PairWeight()
    with torch.no_grad():
        for parameter in weight.parameters():
            parameter.normal_(0, 0.3, generator=torch.Generator().manual_seed(0))
    w = weight(t, r).detach()
    nets = Nets({**nets_of(student).modules, WEIGHT: weight})
    loss = make(weighting="learned").loss(nets, batch, START, draws).loss.detach()
    torch.testing.assert_close(loss, (-w).exp() * plain.loss.detach() + w)
    torch.testing.assert_close(w[r == t], weight.equal(t)[r == t].detach())


def test_the_times_are_in_order_and_uniform():
    method = make(middle="uniform")
    t, m, r = method.times(Draws(0, 0, 80_000))
    low, high = 0.002 / 1.002, 20 / 21
    assert bool((r <= m).all() & (m <= t).all() & (r >= low).all() & (t <= high).all())
    away = r < t
    assert int(away.sum()) == 20_000
    third = (high - low) / 3
    assert float(t[~away].mean()) == pytest.approx((low + high) / 2, abs=5e-3)
    assert float(t[away].mean()) == pytest.approx(low + 2 * third, abs=8e-3)
    assert float(r[away].mean()) == pytest.approx(low + third, abs=8e-3)
    assert float(((t - m) / (t - r))[away].std()) == pytest.approx(12**-0.5, abs=5e-3)
    half = make().times(Draws(0, 0, 80_000))[1]
    torch.testing.assert_close(half, (t + r) / 2)
    parts = [method.times(Draws(0, 0, 80_000, slice(low, low + 8010))) for low in range(0, 80_000, 8010)]
    for at, whole in enumerate((t, m, r)):
        assert torch.equal(torch.cat([part[at] for part in parts])[:80_000], whole)


def test_jumps_land_on_the_flow():
    method, oracle = make(), Gaussian(0.2, 0.8)
    x_T, start = 20 * NoiseSource(0, range(3)).normal((1, 2, 2)), torch.full((3,), 20.0, dtype=torch.float64)
    rows = method.samplers(Sampling(diffusion=method.diffusion, steps=3, two_step=0.8))
    assert [row.nfe for row in rows] == [1, 2, 4]
    for row in rows:
        images = row.from_noise(exact(oracle), x_T, NoiseSource(0, range(3)))
        torch.testing.assert_close(images, oracle.flow(x_T, start, 0 * start + 0.002), rtol=1e-9, atol=1e-9)
