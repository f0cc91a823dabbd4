"""Reflow: its pairs, the straight flow that is its optimum, and its distillation."""

from typing import Any

import pytest
import torch
from exact import SD, START, TwoNumbers, data, exact, nets_of
from tiny import make_denoiser, make_method
from torch import Tensor, nn

from cmcore.diffusion.ode import Denoise
from cmcore.diffusion.path import Linear
from cmcore.diffusion.precond import Denoiser
from cmcore.methods.reflow import Reflow
from cmcore.oracles import Gaussian
from cmcore.rng import Draws, NoiseSource
from cmcore.sample.presets import solver
from cmcore.sample.settings import Sampling, SolverName

SIGMA_MAX = 20.0


def make(**options: Any) -> Reflow:
    method = make_method("reflow", **{"nfe": 255, "distance": "l2", **options})
    assert isinstance(method, Reflow)
    return method


class Straight(nn.Module):
    """The denoiser with straight lines from sigma_max z to the oracle's image of it; `gain` makes it wrong."""

    def __init__(self, oracle: Gaussian) -> None:
        super().__init__()
        self.oracle, self.gain = oracle, nn.Parameter(torch.ones((), dtype=torch.float64))

    def forward(self, x: Tensor, sigma: Tensor, labels: object = None) -> Tensor:
        del labels
        # The image of sigma_max z is mean + g (sigma_max z - mean), so a point of the line is affine in z.
        g, share = self.ratio(), (sigma / SIGMA_MAX).reshape(-1, 1, 1, 1)
        mean = self.oracle.mean
        start = (x - (1 - share) * mean * (1 - g)) / (share + (1 - share) * g)
        return self.gain * (mean + g * (start - mean))

    def ratio(self) -> float:
        s = float(self.oracle.std)
        return s / (s**2 + SIGMA_MAX**2) ** 0.5


def as_student(net: nn.Module) -> Any:
    return net


@pytest.mark.parametrize("name", ["euler", "heun", "dpmpp_2s"])
def test_pairs_are_the_ends_of_the_teacher_s_ode(name: SolverName):
    oracle, z = Gaussian(0.3, 0.8), torch.randn(50, 1, 2, 2, generator=torch.Generator().manual_seed(0)).double()
    start = torch.full((50,), SIGMA_MAX, dtype=torch.float64)
    expected = oracle.flow(SIGMA_MAX * z, start, 0 * start)
    first_order = name == "euler"
    ode = solver(make().diffusion, name, 63)
    same = ode.from_noise(exact(oracle), SIGMA_MAX * z, NoiseSource(0, range(50)))
    torch.testing.assert_close(make(solver=name, nfe=63).pairs(exact(oracle), z, None), same)
    errors = [
        float((make(solver=name, nfe=nfe).pairs(exact(oracle), z, None) - expected).abs().max()) for nfe in (63, 511)
    ]
    assert errors[1] < (0.1 if first_order else 2e-3)
    assert errors[1] < errors[0] / (3 if first_order else 15)


def test_the_optimum_is_the_straight_flow_of_the_same_pairs():
    oracle, draws = Gaussian(0.3, 0.8), Draws(0, 0, 200)
    batch, student = data(oracle, draws), Straight(oracle)
    for steps in (0, 1, 4):
        method = make(steps=steps)
        nets = nets_of(as_student(student), exact(oracle))
        student.gain.data.fill_(1.0)
        assert float(method.loss(nets, batch, START, draws).loss.detach().mean()) < 1e-4
        student.gain.data.fill_(0.8)
        loss = method.loss(nets, batch, START, draws).loss.mean()
        assert float(loss.detach()) > 1e-2
        assert float(torch.autograd.grad(loss, student.gain)[0]) < -1e-2
    # One Euler step of the straight flow is the whole ODE of the curved one; of the curved one it is the mean.
    student.gain.data.fill_(1.0)
    x_T = SIGMA_MAX * NoiseSource(0, range(20)).normal((1, 2, 2))
    one = solver(make().diffusion, "euler_linear", 1)
    start = torch.full((20,), SIGMA_MAX, dtype=torch.float64)
    expected = oracle.flow(x_T, start, 0 * start)
    torch.testing.assert_close(one.from_noise(as_student(student), x_T, NoiseSource(0, range(20))), expected)
    assert float((one.from_noise(exact(oracle), x_T, NoiseSource(0, range(20))) - 0.3).abs().max()) < 0.2


def test_with_independent_pairs_it_is_rectified_flow(monkeypatch: pytest.MonkeyPatch):
    student, draws = Denoiser(TwoNumbers(), sigma_data=SD), Draws(2, 0, 64)
    batch, method = data(Gaussian(0.0, SD), draws), make()
    monkeypatch.setattr(Reflow, "pairs", lambda *_: batch.x)
    # The line that starts at the pure noise differs from the linear path's by the image at sigma_max.
    flow = make_method("rf").loss(nets_of(student), batch, START, draws).loss
    normal = Draws.normal
    monkeypatch.setattr(Draws, "normal", lambda *a, **b: normal(*a, **b).double() + batch.x / SIGMA_MAX)
    torch.testing.assert_close(method.loss(nets_of(student, student), batch, START, draws).loss, flow)


def test_distillation_of_one_step_compares_images():
    oracle, draws = Gaussian(0.1, 0.7), Draws(3, 0, 32)
    student, teacher, batch = Denoiser(TwoNumbers(), sigma_data=SD), exact(oracle), data(oracle, draws)
    method = make(steps=1, distance="pseudo_huber", huber_c=0.1)
    z = draws.normal((1, 2, 2), stream="noise").double()
    D = student(SIGMA_MAX * z, torch.full((32,), SIGMA_MAX, dtype=torch.float64))
    x = method.pairs(teacher, z, None)
    norm = (D - x).flatten(1).norm(dim=1)
    expected = ((norm**2 + 0.01).sqrt() - 0.1) * (21 / 20) ** 2
    torch.testing.assert_close(method.loss(nets_of(student, teacher), batch, START, draws).loss, expected)


def test_the_times():
    t = make().times(Draws(0, 0, 20_000))
    low, high = 0.002 / 1.002, 20 / 21
    assert low <= float(t.min()) < low + 1e-3
    assert high - 1e-3 < float(t.max()) <= high
    assert float(t.mean()) == pytest.approx((low + high) / 2, abs=0.01)
    steps = make(steps=4).times(Draws(0, 0, 20_000)) / high
    assert steps.unique().tolist() == pytest.approx([0.25, 0.5, 0.75, 1.0])
    assert bool((make(steps=1).times(Draws(0, 0, 100)) == high).all())
    assert torch.allclose(Linear().level(make(steps=1).times(Draws(0, 0, 3))), torch.tensor(20.0).double())


def test_a_pair_depends_on_its_address_alone():
    method, batch = make(nfe=9), data(Gaussian(0.1, 0.7), Draws(3, 0, 32))
    teacher = make_denoiser(noise=0.3).eval()
    found = []
    for slices in ([slice(0, 32)], [slice(0, 10), slice(10, 32)]):
        parts = []
        for rows in slices:
            z = Draws(3, 640, 32, rows).normal(batch.x.shape[1:], stream="noise")
            parts.append(method.pairs(teacher, z, None))
        found.append(torch.cat(parts))
    torch.testing.assert_close(found[0], found[1])


def test_its_rows_are_solvers_or_the_distilled_steps():
    sampling = Sampling(diffusion=make().diffusion, steps=3, two_step=0.8, solvers=("euler_linear",), nfe=(1, 2))
    assert [(row.name, row.nfe) for row in make().samplers(sampling)][1:] == [("euler_linear", 1), ("euler_linear", 2)]
    for steps in (1, 4):
        (row,) = make(steps=steps).samplers(sampling)
        assert (row.name, row.nfe) == ("euler_linear", steps)
        starts: list[float] = []

        def watching(x: Tensor, sigma: Tensor, labels: object, starts: list[float] = starts) -> Tensor:
            del labels
            starts.append(float(Linear().time(sigma)[0]))
            return x

        seen: Denoise = watching
        row(seen, (1, 2, 2), NoiseSource(0, range(3)))
        expected = make(steps=steps).times(Draws(0, 0, 1000)).unique().flip(0)
        assert starts == pytest.approx(expected.tolist())
