"""Progressive distillation: the target, its order, and the stages of a run."""

import math
from itertools import pairwise

import pytest
import torch
from exact import SD, TwoNumbers, data, exact, nets_of
from tiny import batches, flat, make_method, make_state, make_train

from cmcore.diffusion.grids import karras_grid
from cmcore.diffusion.ode import euler_step
from cmcore.diffusion.precond import Denoiser
from cmcore.diffusion.settings import DiffusionConfig
from cmcore.methods.base import Progress
from cmcore.oracles import Gaussian
from cmcore.rng import Draws
from cmcore.sample.settings import Sampling
from cmcore.tensors import expand_like
from cmcore.train.session import _crossed, snapshot_images
from cmcore.train.steps import steps

START = Progress(images=0, total=1000, batch=100)


def test_the_target_is_the_prediction_that_lands_where_two_steps_of_the_teacher_do():
    d = DiffusionConfig()
    student, draws = Denoiser(TwoNumbers(), sigma_data=SD), Draws(2, 0, 64)
    teacher = exact(Gaussian(0.1, 0.8))
    batch = data(Gaussian(0.1, 0.8), draws)
    loss = make_method("pd", d, steps=4, long=0).loss(nets_of(student, teacher), batch, START, draws).loss.detach()
    grid, z = karras_grid(9, d.sigma_min, d.sigma_max), draws.normal((1, 2, 2), stream="noise")
    i = (4 * draws.uniform(stream="level")).long()
    t, middle, end = grid[2 * i], grid[2 * i + 1], grid[2 * i + 2]
    x_t = batch.x + expand_like(t, z) * z
    with torch.no_grad():
        landed = euler_step(teacher, euler_step(teacher, x_t, t, middle), middle, end)
        D = student(x_t, t)
    # Both land at the end of one step with D~, so D - D~ is the distance there over 1 - end/t.
    apart = euler_step(lambda *_: D, x_t, t, end) - landed
    expected = (apart / expand_like(1 - end / t, z)) ** 2
    torch.testing.assert_close(loss, expected.flatten(1).mean(1) * (1 / t**2).clamp(min=1), rtol=1e-6, atol=1e-12)


def test_a_teacher_of_many_steps_is_learned_already():
    """For the exact denoiser the target differs by what two Euler steps gain over one: order 1 in the step."""
    oracle = Gaussian(0.2, 1.1)
    errors = []
    for M in (64, 128, 256):
        draws, model = Draws(1, 0, 2000), exact(oracle)
        out = make_method("pd", steps=M, long=0).loss(nets_of(model, model), data(oracle, draws), START, draws)
        errors.append(float(out.scalars["error"]) ** 0.5)
    assert [math.log2(a / b) for a, b in pairwise(errors)] == pytest.approx([1, 1], abs=0.1)


def test_every_stage_ends_at_a_snapshot_and_begins_with_its_own_schedule():
    method = make_method("pd", steps=4, long=1)  # 4 and 2 steps for a quarter each, then one step
    config = make_train(images=20 * 32, lr=1e-3, lr_decay="linear", snapshots=4)
    state = make_state(method, config, noise=0.3)
    rates, ends = [], []
    for record in steps(state, method, batches, config):
        rates.append(record.values["lr"])
        if _crossed(record.images, 32, config.total, 4):
            ends.append(record.images)
            average = flat(state.ema["ema"])
            if record.images in (160, 320):  # the next stage has begun: student, its average and teacher are one
                teacher = flat(state.nets.teacher.net.parameters())
                assert torch.equal(teacher, average)
                assert torch.equal(flat(state.parameters), average)
    assert ends == [160, 320, 480, 640] == [snapshot_images(config, k) for k in (1, 2, 3, 4)]
    assert rates[5] == rates[10] == pytest.approx(1e-3)
    assert rates[4] == pytest.approx(0.25e-3)  # the first stage, declared after its first step, ends as the second
    assert rates[9] == pytest.approx(0.2e-3)
    assert rates[19] == pytest.approx(0.1e-3)


def test_rows_are_sampled_with_the_weights_of_their_stage():
    method = make_method("pd", steps=32, long=2)
    sampling = Sampling(diffusion=method.diffusion, steps=3, two_step=1.0)
    rows = method.samplers(sampling)
    assert [(row.nfe, method.moment(row)) for row in rows] == [(1, 1.0), (2, 6 / 8), (4, 4 / 8), (8, 3 / 8)]
    assert [row.nfe for row in make_method("pd", steps=2, long=0).samplers(sampling)] == [1, 2]


@pytest.mark.parametrize("snapshots", [3, 4, 7, 8])
def test_snapshots_are_where_the_session_takes_them(snapshots: int):
    config = make_train(images=1000, batch=32, snapshots=snapshots)
    taken = [k * 32 for k in range(1, config.steps + 1) if _crossed(k * 32, 32, config.total, snapshots)]
    assert taken == [snapshot_images(config, number) for number in range(1, snapshots + 1)]
