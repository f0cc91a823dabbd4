"""Truncated consistency models: proposal, rows of the boundary, and the exact solution."""

import pytest
import torch
from exact import SD, START, TwoNumbers, data, exact, nets_of
from tiny import make_method
from torch import Tensor

from cmcore.consistency.distances import pseudo_huber
from cmcore.diffusion.precond import Denoiser
from cmcore.oracles import Gaussian
from cmcore.rng import Draws
from cmcore.sample.settings import Sampling
from cmcore.tensors import expand_like

B = 64
BOUNDARY = torch.arange(B) % 4 == 3  # a share of 1/4


def levels(draws: Draws) -> Tensor:
    t = make_method("tcm").levels.sample(draws.uniform(stream="level"))
    return torch.where(BOUNDARY, 1.0, t)


@pytest.mark.parametrize("weighting", ["gap", "edm"])
def test_the_loss_by_hand(weighting: str):
    student, teacher = (Denoiser(TwoNumbers(), sigma_data=SD) for _ in range(2))
    with torch.no_grad():
        teacher.net.ab.mul_(1.5)
    draws = Draws(2, 0, B)
    batch = data(Gaussian(0.0, SD), draws)
    method = make_method("tcm", ratio=0.9, huber_c=0.06, weighting=weighting)
    loss = method.loss(nets_of(student, teacher), batch, START, draws).loss.detach()
    t, z = levels(draws), draws.normal((1, 2, 2), stream="noise")
    r, rows = 0.9 * t, []
    for i in range(B):
        model = student if r[i] >= 1 else teacher
        with torch.no_grad():
            f_t = student(batch.x[i : i + 1] + t[i] * z[i], t[i : i + 1])
            f_r = model(batch.x[i : i + 1] + r[i] * z[i], r[i : i + 1])
        weight = 1 / (t[i] - r[i]) if weighting == "gap" else (t[i] ** 2 + SD**2) / (t[i] * SD) ** 2
        rows.append(weight * pseudo_huber(f_t, f_r, 0.06))
    found = torch.cat(rows)
    assert (r >= 1).any()
    assert ((r < 1) & ~BOUNDARY).any()
    # Over the batch, the mean of the loss is the sum of the two means.
    expected = found[~BOUNDARY].mean() + 0.1 * found[BOUNDARY].mean()
    torch.testing.assert_close(loss.mean(), expected)
    torch.testing.assert_close(loss[BOUNDARY], 0.4 * found[BOUNDARY])


def test_rows_of_the_boundary_are_those_of_a_consistency_model_where_both_stages_agree():
    student = Denoiser(TwoNumbers(), sigma_data=SD)
    draws = Draws(5, 0, B)
    batch = data(Gaussian(0.1, 0.8), draws)
    loss = make_method("tcm", ratio=0.95).loss(nets_of(student, student), batch, START, draws).loss.detach()
    t, z = torch.ones(B, dtype=torch.float64), draws.normal((1, 2, 2), stream="noise")
    with torch.no_grad():
        f_t, f_r = (student(batch.x + expand_like(level, z) * z, level) for level in (t, 0.95 * t))
    ordinary = pseudo_huber(f_t, f_r, 1e-8) / 0.05
    torch.testing.assert_close(loss[BOUNDARY], 0.4 * ordinary[BOUNDARY])


def test_the_kind_of_a_row_does_not_depend_on_how_the_batch_is_cut():
    method = make_method("tcm", boundary_share=0.3)
    whole = method._boundary(Draws(0, 0, 100))
    assert int(whole.sum()) == 30
    parts = [method._boundary(Draws(0, 0, 100, slice(low, low + 25))) for low in range(0, 100, 25)]
    assert torch.equal(torch.cat(parts), whole)


def test_the_exact_solution_is_left_alone():
    # One point: there the one-sample targets have no variance.
    oracle, draws = Gaussian(0.4, 1e-3), Draws(0, 0, B)
    student, teacher = exact(oracle, end=0.0), exact(oracle, end=0.0)
    method, batch = make_method("tcm", ratio=0.98), data(oracle, draws)
    good = method.loss(nets_of(student, teacher), batch, START, draws).scalars["distance"]
    student.net.gain.data.fill_(0.9)
    bad = method.loss(nets_of(student, teacher), batch, START, draws).scalars["distance"]
    assert good < 1e-3
    assert bad > 20 * good


def test_the_bias_of_the_exact_solution_falls_with_the_square_of_the_gap():
    """E[f(x_r, r) | x_t] = f(x_t, t) (s^2 + r t) / sqrt((s^2 + t^2) (s^2 + r^2)) for N(0, s^2)."""
    s, t = 1.1, torch.full((400_000,), 2.0, dtype=torch.float64)
    oracle, generator = Gaussian(0.0, s), torch.Generator().manual_seed(0)
    x, z = (torch.randn(len(t), generator=generator, dtype=torch.float64) for _ in range(2))
    f = exact(oracle, end=0.0)
    biases = []
    with torch.no_grad():
        for ratio in (0.5, 0.8):
            r = ratio * t
            f_t, f_r = f(s * x + t * z, t), f(s * x + r * z, r)
            slope = (f_t * f_r).mean() / (f_t**2).mean()
            expected = (s**2 + r[0] * t[0]) / ((s**2 + t[0] ** 2) * (s**2 + r[0] ** 2)).sqrt()
            assert float(slope) == pytest.approx(float(expected), abs=3e-3)
            biases.append(1 - float(expected))
    assert biases[0] / biases[1] > (0.5 / 0.2) ** 2


def test_second_steps_are_from_learned_levels():
    method = make_method("tcm")
    sampling = Sampling(diffusion=method.diffusion, steps=3, two_step=0.8)
    assert [row.noise_levels for row in method.samplers(sampling)] == [(20.0,), (20.0, 1.0)]
    assert [row.noise_levels for row in method.scan(sampling, (0.5, 1.0, 4.0))] == [(20.0, 1.0), (20.0, 4.0)]
