"""Trajectory consistency distillation: levels, the exact map's residual, and guidance."""

import pytest
import torch
from classes import at, class_denoiser, class_map, of_class, told
from exact import SD, START, TwoNumbers, data, exact, nets_of
from maps import exact_map
from tiny import DIFFUSION, make_method

from cmcore.consistency.distances import l2
from cmcore.diffusion.grids import karras_grid
from cmcore.diffusion.inputs import GUIDANCE
from cmcore.diffusion.jumps import SECOND_TIME
from cmcore.diffusion.ode import euler_step
from cmcore.diffusion.precond import Denoiser
from cmcore.diffusion.settings import DiffusionConfig
from cmcore.oracles import Gaussian
from cmcore.rng import Draws
from cmcore.sample.settings import Sampling
from cmcore.tensors import expand_like

NARROW = DiffusionConfig(sigma_min=0.05, sigma_max=10.0)
ORACLE = Gaussian(0.2, 0.8)
SAMPLING = Sampling(diffusion=DIFFUSION, steps=3, two_step=0.8)


def test_a_jump_ends_at_any_point_up_to_the_lower_level():
    method = make_method("tcd", N=40, k=5)
    t, r, s = method.levels(Draws(1, 0, 40_000))
    grid = karras_grid(40, DIFFUSION.sigma_min, DIFFUSION.sigma_max, DIFFUSION.rho).flip(0)
    i, j, m = (torch.searchsorted(grid, v) for v in (t, r, s))
    assert torch.equal(grid[m], s)
    assert torch.equal(j, (i - 5).clamp(min=0))
    assert int((m - j).max()) == 0
    assert (int(i.min()), int(i.max())) == (1, 39)
    for n in (5, 20, 39):  # uniform over 0 .. n - 5
        found = m[i == n].double()
        assert (int(found.min()), int(found.max())) == (0, n - 5)
        mean = (n - 5) / 2
        spread = ((n - 4) ** 2 - 1) / 12
        assert float(found.mean()) == pytest.approx(mean, abs=4 * (spread / len(found)) ** 0.5 + 1e-9)


@pytest.mark.parametrize(("solver", "factor"), [("euler", 3.4), ("dpmpp_2s", 6.5)])
def test_the_residual_of_the_exact_map_is_the_error_of_the_solver(solver: str, factor: float):
    student, residuals = exact_map(ORACLE), []
    for k in (16, 8, 4):
        method, draws = make_method("tcd", NARROW, N=321, k=k, solver=solver, distance="l1"), Draws(1, 0, 2000)
        nets = nets_of(student, exact(ORACLE), exact_map(ORACLE))
        with torch.no_grad():
            residuals.append(float(method.loss(nets, data(ORACLE, draws), START, draws).loss.mean()))
    assert residuals[0] / residuals[1] > factor
    assert residuals[1] / residuals[2] > factor
    student.net.get_parameter("gain").data.fill_(0.8)
    with torch.no_grad():
        assert float(method.loss(nets, data(ORACLE, draws), START, draws).loss.mean()) > 20 * residuals[-1]


def test_its_fixed_point_is_the_guided_flow_at_every_scale():
    found = {}
    for k in (8, 4, 2):
        method = make_method("tcd", NARROW, N=161, k=k, distance="l1", guidance=(1.0, 8.0))
        draws, inputs = Draws(1, 0, 1000), method.traits.inputs
        assert inputs == (SECOND_TIME, GUIDANCE)
        for name, scale in (("right", told), ("wrong", at(1.0))):
            student = class_map("s", inputs, scale)
            nets = nets_of(student, class_denoiser(at(1.0)), student)
            found[name, k] = float(method.loss(nets, of_class(draws), START, draws).loss.detach().mean())
    assert found["right", 8] / found["right", 4] > 3.4
    assert found["right", 4] / found["right", 2] > 3.4
    assert found["wrong", 2] > 10 * found["right", 2]


@pytest.mark.parametrize("sees_end", [True, False])
def test_the_loss_by_hand(sees_end: bool):
    """f is Euler's step from t to s under the network, which sees s or not."""
    method, draws = make_method("tcd", N=30, k=7, distance="l2", sees_end=sees_end), Draws(3, 0, 200)
    assert method.traits.inputs == ((SECOND_TIME,) if sees_end else ())
    nets = [Denoiser(TwoNumbers(), sigma_data=SD, inputs=method.traits.inputs) for _ in range(2)]
    nets[1].net.get_parameter("ab").data.mul_(0.5)
    batch, (t, r, s) = data(ORACLE, draws), method.levels(draws)
    loss = method.loss(nets_of(nets[0], exact(ORACLE), nets[1]), batch, START, draws).loss
    z = draws.normal((1, 2, 2), stream="noise")
    x_t = batch.x + expand_like(t, z) * z
    x_r = euler_step(exact(ORACLE), x_t, t, r)
    expected = l2(euler_step(nets[0], x_t, t, s), euler_step(nets[1], x_r, r, s))
    torch.testing.assert_close(loss, expected)


def test_without_its_end_the_map_of_a_point_is_still_exact():
    """There D is the same at every level, so that TCF(1) is the flow itself; of a wider class it is not."""
    method, draws = make_method("tcd", NARROW, N=41, k=8, sees_end=False, distance="l1"), Draws(1, 0, 500)
    residuals = []
    for std in (1e-9, 0.8):
        oracle = Gaussian(0.4, std)
        nets = nets_of(exact(oracle), exact(oracle), exact(oracle))
        residuals.append(float(method.loss(nets, data(oracle, draws), START, draws).loss.detach().mean()))
    assert residuals[0] < 1e-7
    assert residuals[1] > 1e-3


def test_samplers_jump_with_the_configured_gamma():
    method = make_method("tcd", gamma=0.4, guidance=(1.0, 4.0))
    rows = method.samplers(SAMPLING)
    assert [row.nfe for row in rows] == [1, 2, 4]
    assert rows[1].noise_levels == (20.0, 0.8)
    assert {row.gamma for row in rows} == {0.4}
    assert [row.noise_levels for row in method.scan(SAMPLING, (0.5, 4.0))] == [(20.0, 0.5), (20.0, 4.0)]
    single = make_method("tcd", guidance=(4.0, 4.0)).samplers(SAMPLING)
    assert {row.name for row in single} == {"strategic, guidance 4.0"}
