"""Latent consistency models: grid, scalings, solver and guidance against what is known exactly."""

from typing import Any

import numpy as np
import pytest
import torch
from classes import Class, Scale, at, class_denoiser, of_class, told
from exact import SD, START, TwoNumbers, data, exact, nets_of
from tiny import DIFFUSION, make_method
from torch import Tensor, nn

from cmcore.consistency.distances import huber
from cmcore.diffusion.grids import karras_grid
from cmcore.diffusion.guidance import Guided
from cmcore.diffusion.inputs import GUIDANCE
from cmcore.diffusion.ode import euler_step
from cmcore.diffusion.precond import Denoiser, Labels
from cmcore.diffusion.settings import DiffusionConfig
from cmcore.methods.base import STUDENT, TEACHER, Nets
from cmcore.methods.lcm import ConsistencyFunction
from cmcore.oracles import Gaussian
from cmcore.rng import Draws
from cmcore.sample.builtin import BuiltIn
from cmcore.sample.settings import Sampling
from cmcore.tensors import expand_like

NARROW = DiffusionConfig(sigma_min=0.05, sigma_max=10.0)
ORACLE = Gaussian(0.2, 0.8)


def full(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


class ExactWithin(nn.Module):
    """D with which LCM's f is the exact consistency function: the scalings undone."""

    def __init__(self, method: Any) -> None:
        super().__init__()
        self.method = method

    def forward(self, x: Tensor, sigma: Tensor, labels: Labels = None) -> Tensor:
        n = self.method.config.timestep_scaling * self.method.timestep(sigma)
        c_skip, c_out = 0.25 / (n**2 + 0.25), n / (n**2 + 0.25).sqrt()
        f = ORACLE.consistency(x, sigma, self.method.diffusion.sigma_min)
        return (f - expand_like(c_skip, x) * x) / expand_like(torch.where(c_out > 0, c_out, 1.0), x)


def student_of(method: Any) -> Any:
    if method.config.scalings == "lcm":
        return ExactWithin(method)
    return exact(ORACLE, end=method.diffusion.sigma_min, epsilon=method.diffusion.sigma_min)


def test_the_scalings_by_hand():
    f = ConsistencyFunction(lambda x, sigma, labels: 0 * x + 3.0, lambda sigma: sigma, 10.0)
    x = torch.full((4, 1, 1, 1), 2.0, dtype=torch.float64)
    found = f(x, full(0.0, 0.05, 1.0, 19.0)).flatten()
    c_skip, c_out = full(1.0, 0.5, 0.25 / 100.25, 0.25 / 36100.25), full(0.0, 0.5**0.5, 10 / 100.25**0.5, 1.0)
    torch.testing.assert_close(found[:3], (2 * c_skip + 3 * c_out)[:3])
    assert float(c_skip[3]) == pytest.approx(6.9e-6, rel=0.01)
    assert float(found[3]) == pytest.approx(2 * 6.9e-6 + 3, abs=1e-4)


def test_timesteps_number_the_points_of_the_grid():
    method = make_method("lcm", N=1000)
    grid = karras_grid(1000, DIFFUSION.sigma_min, DIFFUSION.sigma_max, DIFFUSION.rho).flip(0)
    torch.testing.assert_close(method.timestep(grid), torch.arange(1000, dtype=torch.float64), rtol=0, atol=1e-6)


def test_at_sigma_min_it_is_the_identity_to_the_last_bit():
    method = make_method("lcm")
    x = torch.randn(8, 1, 2, 2, generator=torch.Generator().manual_seed(0))
    f = method.model(Denoiser(TwoNumbers().float(), sigma_data=SD))(x, full(DIFFUSION.sigma_min).expand(8), None)
    assert torch.equal(f, x)


@pytest.mark.parametrize("scalings", ["lcm", "cm"])
@pytest.mark.parametrize(("solver", "order"), [("euler", 2), ("heun", 3), ("dpmpp_2s", 3)])
def test_the_residual_falls_with_the_order_of_the_solver_in_the_skipping_step(solver: str, order: int, scalings: str):
    residuals, steps = [], [16, 8, 4, 2]
    for k in steps:
        method = make_method("lcm", NARROW, N=321, k=k, solver=solver, distance="l1", scalings=scalings)
        draws, student = Draws(1, 0, 2000), student_of(method)
        nets = nets_of(student, exact(ORACLE), student)
        residuals.append(float(method.loss(nets, data(ORACLE, draws), START, draws).loss.detach().mean()))
    assert float(np.polyfit(np.log(steps), np.log(residuals), 1)[0]) == pytest.approx(order, abs=0.12)


@pytest.mark.parametrize("solver", ["euler", "heun"])
@pytest.mark.parametrize("mu", [0.0, 0.5])
def test_with_a_skipping_step_of_one_it_is_consistency_distillation(solver: str, mu: float):
    options = {"N": 18, "solver": solver, "distance": "l2", "mu": mu}
    student, draws = Denoiser(TwoNumbers(), sigma_data=SD, epsilon=DIFFUSION.sigma_min), Draws(2, 0, 64)
    nets, batch = nets_of(student, exact(ORACLE), student), data(ORACLE, draws)
    cd, lcm, further = (
        method.loss(nets, batch, START, draws).loss
        for method in (
            make_method("cd", **options),
            make_method("lcm", k=1, scalings="cm", **options),
            make_method("lcm", k=2, scalings="cm", **options),
        )
    )
    assert torch.equal(lcm, cd)
    assert not torch.isclose(further, cd).all()


def test_guidance_without_strength_is_none():
    """w = 0 is the scale 1."""
    draws, plain, guided = Draws(2, 0, 64), make_method("lcm"), make_method("lcm", guidance=(1.0, 1.0))
    student = class_denoiser(at(0.3))
    nets = nets_of(student, class_denoiser(at(1.0)), student)
    found, expected = (m.loss(nets, of_class(draws), START, draws).loss for m in (guided, plain))
    torch.testing.assert_close(found, expected)


def test_the_guided_step_is_that_of_the_paper():
    """(1 + w) Psi(label) - w Psi(no label), of which DDIM makes the step of the guided model (Eq. 13)."""
    labels, x, t, r = torch.zeros(5, dtype=torch.int64), torch.randn(5, 1, 2, 2).double(), full(2.0), full(1.1)
    teacher, w = class_denoiser(at(1.0)), 4.0
    t, r = t.expand(5), r.expand(5)
    known, unknown = (euler_step(teacher, x, t, r, told) for told in (labels, torch.full_like(labels, -1)))
    torch.testing.assert_close(
        euler_step(Guided(teacher, 1 + w), x, t, r, labels), x + (1 + w) * (known - x) - w * (unknown - x)
    )


def consistency_of(scale: Scale, inputs: Any) -> Denoiser:
    net = Class(scale, NARROW.sigma_min)
    denoiser = Denoiser(net, sigma_data=SD, epsilon=NARROW.sigma_min, inputs=inputs)
    net.outer = (denoiser,)
    return denoiser


def test_its_fixed_point_is_the_guided_flow_at_every_scale():
    found = {}
    for k in (8, 4, 2):
        method = make_method("lcm", NARROW, N=161, k=k, distance="l1", scalings="cm", guidance=(1.0, 8.0))
        draws, inputs = Draws(1, 0, 1000), method.traits.inputs
        assert inputs == (GUIDANCE,)
        for name, scale in (("right", told), ("wrong", at(1.0))):
            student = consistency_of(scale, inputs)
            nets = nets_of(student, class_denoiser(at(1.0)), student)
            found[name, k] = float(method.loss(nets, of_class(draws), START, draws).loss.detach().mean())
    assert found["right", 8] / found["right", 4] > 3.5
    assert found["right", 4] / found["right", 2] > 3.5
    assert found["wrong", 2] > 10 * found["right", 2]


def test_a_single_scale_is_part_of_the_weights():
    method = make_method("lcm", guidance=(4.0, 4.0))
    assert method.traits.inputs == ()
    rows = method.samplers(Sampling(diffusion=DIFFUSION, steps=3, two_step=0.8))
    assert [row.nfe for row in rows] == [1, 2, 4]
    assert all(isinstance(row, BuiltIn) and row.name == "multistep, guidance 4.0" for row in rows)
    draws, student = Draws(1, 0, 64), class_denoiser(at(0.5))
    nets = nets_of(student, class_denoiser(at(1.0)), student)
    plain = make_method("lcm")
    guided = Nets({**nets.modules, TEACHER: class_denoiser(at(4.0))})
    found, expected = (
        method.loss(nets, of_class(draws), START, draws),
        plain.loss(guided, of_class(draws), START, draws),
    )
    torch.testing.assert_close(found.loss, expected.loss)


def test_the_loss_by_hand():
    method, draws = make_method("lcm", N=50, k=20, huber_c=0.1), Draws(3, 0, 500)
    student, target = (Denoiser(TwoNumbers(), sigma_data=SD) for _ in range(2))
    target.net.get_parameter("ab").data.mul_(0.5)
    batch = data(ORACLE, draws)
    loss = method.loss(nets_of(student, exact(ORACLE), target), batch, START, draws).loss.detach()
    grid = karras_grid(50, DIFFUSION.sigma_min, DIFFUSION.sigma_max, DIFFUSION.rho).flip(0)
    z, seen = draws.normal((1, 2, 2), stream="noise"), torch.zeros(500, dtype=torch.long)
    for n in range(1, 50):
        t, r = (grid[i].expand(500) for i in (n, max(n - 20, 0)))
        x_t = batch.x + expand_like(t, z) * z
        x_r = euler_step(exact(ORACLE), x_t, t, r)
        with torch.no_grad():
            f, aim = method.model(student)(x_t, t, None), method.model(target)(x_r, r, None)
        seen += torch.isclose(loss, huber(f, aim, 0.1), rtol=1e-6)
    assert torch.equal(seen, torch.ones_like(seen))


def test_the_average_is_of_the_student_and_can_be_left_out():
    assert set(make_method("lcm").networks) == {TEACHER, "target"}
    (blend,) = make_method("lcm", mu=0.9).after(START)
    assert (blend.network, blend.source, blend.decay) == ("target", STUDENT, 0.9)
    assert make_method("lcm", mu=0.0).after(START) == ()
