"""Every method learns: short runs on images of two values, judged by the energy distance of their samples."""

from functools import cache
from typing import Any

import pytest
import torch
from registry import entry
from tiny import DIFFUSION, METHODS, SHAPE, batches, make_denoiser, make_method, make_train
from torch import Tensor

from cmcore.assemble.models import start_from
from cmcore.diffusion.ode import Denoise
from cmcore.diffusion.precond import Denoiser
from cmcore.rng import Draws, NoiseSource
from cmcore.sample.settings import Sampling
from cmcore.train.state import new_state
from cmcore.train.steps import steps

# Before training the energy distance is 0.9 from random weights, 0.5 from the diffusion model taken in one step, and
# 0.3 for random weights in the ODE solver. Options and thresholds are those of the registry.


def energy_distance(a: Tensor, b: Tensor) -> float:
    """2 E|a - b| - E|a - a'| - E|b - b'|, without bias."""
    a, b = a.flatten(1).double(), b.flatten(1).double()
    n = len(a) * (len(a) - 1)
    return float(2 * torch.cdist(a, b).mean() - torch.cdist(a, a).sum() / n - torch.cdist(b, b).sum() / n)


def judge(denoiser: Denoise, name: str) -> float:
    method = make_method(name, **entry(name).short)
    sampler = method.samplers(Sampling(diffusion=DIFFUSION, steps=10, two_step=1.0))[0]
    images = sampler(denoiser, SHAPE, NoiseSource(5, range(1000)), None)
    return energy_distance(images, batches(Draws(99, 0, 1000)).x)


def train(name: str, init: Denoiser | None, **options: Any) -> tuple[Denoiser, float]:
    known = entry(name)
    method = make_method(name, **known.short | options)
    student = make_denoiser(boundary=method.traits.boundary, hidden=64, inputs=method.traits.inputs)
    teacher = make_denoiser(hidden=64)
    if init is not None:
        start_from(student.net, init.net.state_dict())
        teacher.net.load_state_dict(init.net.state_dict())
    config = make_train(images=128 * known.steps, batch=128, lr=known.lr)
    state = new_state(method, student, config, init=teacher, teacher=teacher)
    for _ in steps(state, method, batches, config):
        pass
    return student, judge(method.model(student.eval()), name)


@cache
def trained(name: str) -> tuple[Denoiser, float]:
    """A short run after those that it starts from; nobody changes its weights."""
    start = entry(name).start
    return train(name, None if start == "random" else trained(start)[0])


@pytest.mark.parametrize("name", METHODS)
def test_a_short_run_beats_its_threshold(name: str):
    assert trained(name)[1] < entry(name).distance


def test_add_learns_by_the_features_of_its_teacher_alone():
    options = {"features": "teacher", "distillation": 0.0, "r1": 10.0, "m": -1.0}
    assert train("add", trained("edm")[0], **options)[1] < entry("add").distance


def test_the_threshold_is_out_of_reach_without_training():
    edm = trained("edm")
    assert judge(make_denoiser(hidden=64).eval(), "edm") > 0.2
    assert judge(edm[0], "ect") > 0.4
    assert judge(make_denoiser(boundary=True, hidden=64).eval(), "ict") > 0.6
