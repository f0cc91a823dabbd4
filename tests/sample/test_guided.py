"""Guided sampling of normal classes: what the guided flow leads to is known, and so is what it costs."""

import pytest
import torch
from torch import Tensor

from cmcore.diffusion.grids import karras_grid, with_zero
from cmcore.diffusion.inputs import NO_LABEL
from cmcore.diffusion.precond import Labels, as_condition
from cmcore.oracles import Gaussian
from cmcore.rng import NoiseSource
from cmcore.sample.base import Sampler
from cmcore.sample.fewstep import Multistep
from cmcore.sample.guided import GuidedSampler
from cmcore.sample.solvers import DPMSolverPP2M, Euler, Heun

GRID = with_zero(karras_grid(200, 0.002, 40.0))
SHAPE, LABELS, MEAN, STD = (1, 2, 2), torch.tensor([0, 0, 0]), 0.3, 0.5
OTHER = -0.2  # the mean under another label, 1


class Model:
    """N(MEAN, STD^2) under the label 0, N(0, STD^2) without: guided with s it is N(s MEAN, STD^2) exactly.

    Away from the label 1 it is N(OTHER + s (MEAN - OTHER), STD^2).
    """

    def __init__(self) -> None:
        self.calls: list[tuple[int, Tensor | None]] = []

    def __call__(self, x: Tensor, sigma: Tensor, labels: Labels = None) -> Tensor:
        condition = as_condition(labels)
        assert condition.labels is not None
        self.calls.append((len(x), condition.inputs.get("guidance")))
        mean = torch.tensor([MEAN, OTHER, 0.0])[condition.labels][:, None, None, None]  # the last of NO_LABEL = -1
        return Gaussian(mean, STD).denoise(x, sigma)


@pytest.mark.parametrize(("solver", "tolerance"), [(Euler, 2e-2), (Heun, 2e-3), (DPMSolverPP2M, 2e-3)])
@pytest.mark.parametrize("s", [0.0, 1.0, 1.4, 3.0])
@pytest.mark.parametrize(("negative", "away"), [(None, 0.0), (NO_LABEL, 0.0), (1, OTHER)])
def test_every_solver_ends_where_the_guided_flow_does(
    solver: type[Euler], tolerance: float, s: float, negative: int | None, away: float
):
    told = None if negative is None else torch.tensor(negative)
    model, sampler = Model(), GuidedSampler(solver(GRID), s, negative=told)
    images = sampler(model, SHAPE, NoiseSource(1, range(3)), LABELS)
    x_T = sampler.sigma_max * NoiseSource(1, range(3)).normal(SHAPE)
    levels = torch.full((3,), sampler.sigma_max, dtype=torch.float64)
    exact = Gaussian(away + s * (MEAN - away), STD).flow(x_T, levels, torch.zeros_like(levels))
    torch.testing.assert_close(images, exact, rtol=0, atol=tolerance)


def test_a_scale_of_one_gives_the_bits_of_the_plain_sampler():
    plain = Heun(GRID)(Model(), SHAPE, NoiseSource(1, range(3)), LABELS)
    assert torch.equal(GuidedSampler(Heun(GRID), 1.0)(Model(), SHAPE, NoiseSource(1, range(3)), LABELS), plain)


@pytest.mark.parametrize("inner", [Heun(GRID[-6:]), DPMSolverPP2M(GRID[-6:]), Multistep((40.0, 0.8), 0.002)])
def test_each_evaluation_counts_twice(inner: Sampler):
    model, sampler = Model(), GuidedSampler(inner, 1.4)
    sampler(model, SHAPE, NoiseSource(1, range(3)), LABELS)
    assert sampler.nfe == 2 * inner.nfe == sum(rows for rows, _ in model.calls) // 3
    assert sampler.name == f"{inner.name}, guidance 1.4"
    assert sampler.sigma_max == inner.sigma_max


def test_a_model_that_has_learned_scales_is_evaluated_once():
    model, sampler = Model(), GuidedSampler(Multistep((40.0, 0.8), 0.002), 1.4, learned=True)
    sampler(model, SHAPE, NoiseSource(1, range(3)), LABELS)
    assert sampler.nfe == 2 == len(model.calls)
    for rows, scales in model.calls:
        assert rows == 3
        assert scales is not None
        torch.testing.assert_close(scales, torch.full((3,), 1.4))
