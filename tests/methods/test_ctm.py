"""Consistency trajectory models: levels, both losses, and what the exact map is left with."""

import pytest
import torch
from exact import START, data, exact, nets_of
from maps import exact_map
from tiny import batches, make_method, make_state

from cmcore.diffusion.jumps import jump
from cmcore.diffusion.precond import with_inputs
from cmcore.diffusion.settings import DiffusionConfig
from cmcore.methods.base import STUDENT, Progress
from cmcore.oracles import Gaussian
from cmcore.rng import Draws
from cmcore.sample.settings import Sampling

EDM = DiffusionConfig()


def full(value: float) -> torch.Tensor:
    return torch.tensor([value], dtype=torch.float64)


@pytest.mark.parametrize(
    ("t", "s", "G", "g"),
    [(5, 1, 0.222497, 0.0281213), (1, 0.5, 0.632456, 0.264911), (80, 0.002, 0.00624993, 0.00622508)],
)
def test_the_exact_map_by_hand(t: float, s: float, G: float, g: float):
    student, x = exact_map(Gaussian(0.0, 0.5)), torch.ones(1, 1, 1, 1, dtype=torch.float64)
    assert float(jump(student, x, full(t), full(s)).detach()) == pytest.approx(G, rel=1e-5)
    assert float(student(x, full(t), with_inputs(None, s=full(s))).detach()) == pytest.approx(g, rel=1e-5)


def test_the_number_of_solver_steps_is_one_for_a_batch_and_in_proportion_to_itself():
    method = make_method("ctm", EDM)
    found = torch.tensor([method.levels(Draws(seed, 0, 2))[1] for seed in range(4000)], dtype=torch.float64)
    assert (int(found.min()), int(found.max())) == (1, 17)
    assert float(found.mean()) == pytest.approx(35 / 3, abs=5 * float(found.std()) / 4000**0.5)
    parts = {method.levels(Draws(7, 512, 64, slice(low, low + 16)))[1] for low in range(0, 64, 16)}
    assert len(parts) == 1


@pytest.mark.parametrize("std", [0.5, 1.1])
def test_the_residual_of_the_exact_map_is_the_error_of_the_solver(std: float):
    """It falls with the square of the step or faster, and is far below that of a wrong map."""
    oracle, diffusion = Gaussian(0.2, std), DiffusionConfig(sigma_min=0.05, sigma_max=10.0)
    student, residuals = exact_map(oracle), []
    for N in (11, 21, 41):
        method, draws = make_method("ctm", diffusion, N=N, most=N - 1, distance="l1"), Draws(1, 0, 2000)
        known = nets_of(student, exact(oracle), exact_map(oracle))
        with torch.no_grad():
            residuals.append(float(method.loss(known, data(oracle, draws), START, draws).scalars["distance"]))
    assert residuals[0] / residuals[1] > 3.5
    assert residuals[1] / residuals[2] > 3.5
    student.net.gain.data.fill_(0.8)
    with torch.no_grad():
        wrong = float(method.loss(known, data(oracle, draws), START, draws).scalars["distance"])
    assert wrong > 20 * residuals[-1]


def test_the_denoising_loss_is_least_at_the_denoiser():
    oracle, method, found = Gaussian(0.2, 1.1), make_method("ctm", EDM), []
    for gain in (1.0, 0.9):
        student, rows = exact_map(oracle), []
        student.net.gain.data.fill_(gain)
        for seed in range(20):
            draws = Draws(seed, 0, 4000)
            loss = method._denoising(nets_of(student), data(oracle, draws), draws).mean()
            rows.append(torch.autograd.grad(loss, student.net.gain)[0])
        found.append(torch.stack(rows))
    good, bad = found
    assert abs(float(good.mean())) < 4 * float(good.std()) / len(good) ** 0.5
    assert abs(float(bad.mean())) > 10 * float(bad.std()) / len(bad) ** 0.5


def test_gradients_pass_through_the_outer_jump_but_not_to_its_weights():
    oracle, draws = Gaussian(0.2, 1.1), Draws(1, 0, 200)
    student, target = exact_map(oracle), exact_map(oracle)
    student.net.gain.data.fill_(0.9)
    target.requires_grad_(False)
    method = make_method("ctm", EDM, denoising=0.0, distance="l2")
    method.loss(nets_of(student, exact(oracle), target), data(oracle, draws), START, draws).loss.sum().backward()
    assert student.net.gain.grad is not None
    assert float(student.net.gain.grad.abs()) > 0
    assert target.net.gain.grad is None


def test_samplers_jump_with_the_configured_share_of_new_noise():
    method = make_method("ctm", gamma=0.3)
    sampling = Sampling(diffusion=method.diffusion, steps=3, two_step=0.8)
    rows = method.samplers(sampling)
    assert [row.nfe for row in rows] == [1, 2, 4]
    assert rows[1].noise_levels == (20.0, 0.8)
    assert {row.gamma for row in rows} == {0.3}
    assert [row.noise_levels for row in method.scan(sampling, (0.5, 4.0))] == [(20.0, 0.5), (20.0, 4.0)]


def test_the_gan_begins_after_its_share_of_the_run():
    method = make_method("ctm", gan=0.1, gan_after=0.5)
    early, late = Progress(images=0, total=1000, batch=100), Progress(images=500, total=1000, batch=100)
    assert method.turns(early) == (STUDENT,)
    assert method.turns(late) == ("discriminator", STUDENT)
    assert make_method("ctm").turns(late) == (STUDENT,)
    assert set(make_method("ctm").networks) == {"teacher", "target"}


def test_the_adversarial_loss_is_the_weighted_logit_of_the_estimate():
    """Added to the loss without it; the discriminator's own loss is 2 where all logits are 0, and stays its own."""
    state = make_state(make_method("ctm", gan=0.1), noise=0.3)
    draws, late = Draws(1, 0, 16), Progress(images=160, total=320, batch=16)
    plain = make_method("ctm").loss(state.nets, batches(draws), late, draws).loss
    out = make_method("ctm", gan=0.1).loss(state.nets, batches(draws), late, draws)
    torch.testing.assert_close((out.loss - plain).mean(), 0.1 * out.scalars["adversarial"], rtol=1e-3, atol=1e-6)
    assert float(out.scalars["adversarial"]) != 0
    early = make_method("ctm", gan=0.1).loss(state.nets, batches(draws), Progress(0, 320, 16), draws).loss
    assert torch.equal(early, plain)
    for parameter in state.nets["discriminator"].parameters():
        parameter.data.zero_()
    loss = make_method("ctm", gan=0.1).loss_of("discriminator", state.nets, batches(draws), late, draws).loss
    assert torch.equal(loss, torch.full((16,), 2.0))
    loss.sum().backward()
    assert all(parameter.grad is None for parameter in state.nets.student.parameters())
