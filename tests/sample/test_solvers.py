"""ODE samplers on the Gaussian oracle, whose flow is known: order, cost, and the stochastic variant's law."""

import math
from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from cmcore.diffusion.grids import karras_grid, with_zero
from cmcore.diffusion.settings import DiffusionConfig
from cmcore.oracles import Gaussian, as_denoiser
from cmcore.rng import NoiseSource
from cmcore.sample.base import Sampler
from cmcore.sample.fewstep import Multistep
from cmcore.sample.presets import diffusion_samplers, ode_sampler
from cmcore.sample.settings import Sampling
from cmcore.sample.solvers import DPMSolverPP2M, DPMSolverPP2S, Euler, Heun

ORACLE = Gaussian(mean=0.1, std=0.5)
SHAPE = (1, 2, 2)


class Recorder:
    """The oracle's denoiser, remembering every call."""

    def __init__(self) -> None:
        self.calls: list[tuple[Tensor, Tensor, Tensor | None]] = []

    def __call__(self, x: Tensor, sigma: Tensor, labels: Tensor | None = None) -> Tensor:
        self.calls.append((x, sigma, labels))
        return ORACLE.denoise(x, sigma)


def source(seed: int = 0, count: int = 4) -> NoiseSource:
    return NoiseSource(seed, range(count))


def error(sampler: Sampler, end: float) -> float:
    x_T = sampler.sigma_max * source().normal(SHAPE)
    levels = torch.full((4,), sampler.sigma_max, dtype=torch.float64)
    exact = ORACLE.flow(x_T, levels, torch.full_like(levels, end))
    return (sampler.from_noise(as_denoiser(ORACLE), x_T, source(1)) - exact).abs().max().item()


@pytest.mark.parametrize(("solver", "order"), [(Euler, 1), (Heun, 2), (DPMSolverPP2M, 2), (DPMSolverPP2S, 2)])
def test_order_of_convergence(solver: Callable[[Tensor], Sampler], order: int):
    errors = [error(solver(karras_grid(n, 0.002, 80.0)), 0.002) for n in (65, 129, 257)]
    slopes = [math.log2(a / b) for a, b in pairwise(errors)]
    assert slopes == pytest.approx([order] * 2, abs=0.1)


@pytest.mark.parametrize(
    ("sampler", "nfe"),
    [
        (Euler(with_zero(karras_grid(18, 0.002, 80.0))), 18),
        (Heun(with_zero(karras_grid(18, 0.002, 80.0))), 35),
        (Heun(with_zero(karras_grid(40, 0.002, 80.0))), 79),
        (Heun(with_zero(karras_grid(256, 0.002, 80.0)), S_churn=40, S_min=0.05, S_max=50, S_noise=1.003), 511),
        (Heun(karras_grid(18, 0.002, 80.0)), 34),
        (DPMSolverPP2M(with_zero(karras_grid(10, 0.002, 80.0))), 10),
        (DPMSolverPP2S(with_zero(karras_grid(10, 0.002, 80.0))), 19),
        (DPMSolverPP2S(karras_grid(10, 0.002, 80.0)), 18),
        (Multistep((80.0,), 0.002), 1),
        (Multistep((80.0, 0.8), 0.002), 2),
    ],
    ids=lambda v: str(getattr(v, "name", v)),
)
def test_nfe_is_what_the_denoiser_counts(sampler: Sampler, nfe: int):
    denoiser = Recorder()
    images = sampler(denoiser, SHAPE, source())
    assert len(denoiser.calls) == sampler.nfe == nfe
    assert images.shape == (4, *SHAPE)
    assert images.dtype == torch.float64


def test_every_sampler_starts_from_the_same_noise():
    grid = with_zero(karras_grid(5, 0.002, 20.0))
    starts = []
    for sampler in (Euler(grid), Heun(grid), DPMSolverPP2M(grid), DPMSolverPP2S(grid), Multistep((20.0, 0.8), 0.002)):
        sampler(denoiser := Recorder(), SHAPE, source(3))
        x, sigma, _ = denoiser.calls[0]
        assert sigma.tolist() == [20.0] * 4
        starts.append(x)
    assert torch.equal(starts[0], 20.0 * source(3).normal(SHAPE))
    assert all(torch.equal(x, starts[0]) for x in starts)


def test_labels_reach_every_call_and_no_gradient_is_recorded():
    labels = torch.tensor([3, 1, 4, 1])
    for solver in (Heun, DPMSolverPP2M, DPMSolverPP2S):
        sampler = solver(karras_grid(4, 0.002, 20.0))
        x_T = source().normal(SHAPE).requires_grad_()
        assert not sampler.from_noise(denoiser := Recorder(), x_T, source(), labels).requires_grad
        assert all(y is labels for _, _, y in denoiser.calls)


def test_dpmpp_drops_to_order_one_at_the_end_of_short_runs_only():
    """With the last step at order 1, forgetting the history before it changes nothing."""
    for steps, forgets in ((9, True), (10, False)):
        grid = karras_grid(steps + 1, 0.02, 5.0)
        x_T = 5 * source().normal(SHAPE)
        whole = DPMSolverPP2M(grid).from_noise(as_denoiser(ORACLE), x_T, source())
        before = DPMSolverPP2M(grid[:-1], lower_order_below=0).from_noise(as_denoiser(ORACLE), x_T, source())
        euler = Euler(grid[-2:]).from_noise(as_denoiser(ORACLE), before, source())
        assert torch.allclose(whole, euler, rtol=1e-12, atol=1e-12) == forgets


def test_churn_raises_the_level_and_adds_the_missing_noise():
    grid = karras_grid(5, 0.1, 10.0)
    sampler = Heun(grid, S_churn=0.8, S_min=0.5, S_max=20.0, S_noise=1.1)
    assert sampler.gamma(10.0) == pytest.approx(0.2)  # S_churn over the number of steps
    assert Heun(grid, S_churn=40.0).gamma(10.0) == pytest.approx(2**0.5 - 1)  # at most a doubled variance
    assert sampler.gamma(0.4) == sampler.gamma(21.0) == 0.0
    x_T = 10 * source().normal(SHAPE)
    sampler.from_noise(denoiser := Recorder(), x_T, source(1))
    x_hat, sigma_hat, _ = denoiser.calls[0]
    torch.testing.assert_close(sigma_hat, torch.full((4,), 12.0, dtype=torch.float64))
    torch.testing.assert_close(x_hat, x_T + 1.1 * math.sqrt(12.0**2 - 10.0**2) * source(1).normal(SHAPE))
    assert torch.equal(
        Heun(grid).from_noise(Recorder(), x_T, source(1)), Heun(grid).from_noise(Recorder(), x_T, source(2))
    )


@pytest.mark.parametrize(("levels", "S_churn"), [(40, 0.0), (160, 30.0)])
def test_samples_have_the_data_s_moments(levels: int, S_churn: float):
    """64k scalars: standard error 0.5/256 for the mean, 0.7 times that for the deviation; four of them allowed.

    Churn needs the finer grid: its larger steps leave 0.002 too much deviation at 160 levels, and 0.018 at 40.
    """
    sampler = Heun(with_zero(karras_grid(levels, 0.002, 80.0)), S_churn)
    images = sampler(as_denoiser(ORACLE), (1, 32, 32), source(5, 64))
    assert images.mean().item() == pytest.approx(0.1, abs=4 * 0.5 / 256)
    assert images.std().item() == pytest.approx(0.5, abs=4 * 0.5 / 256 / 2**0.5)


@pytest.mark.parametrize("solver", [Euler, Heun, DPMSolverPP2M, DPMSolverPP2S])
def test_impossible_grids_are_refused(solver: Callable[[Tensor], Sampler]):
    for bad in ([1.0], [1.0, 1.0], [0.5, 1.0], [1.0, -0.1], [float("inf"), 1.0], [float("nan"), 1.0]):
        with pytest.raises(ValueError, match="descending"):
            solver(torch.tensor(bad))


def test_impossible_churn_is_refused():
    with pytest.raises(ValueError, match="S_churn"):
        Heun(karras_grid(3, 0.1, 1.0), S_churn=-1.0)


def test_an_unfinished_sampler_cannot_be_built():
    class Unfinished(Sampler):
        name = "unfinished"

    with pytest.raises(TypeError, match="abstract"):
        Unfinished()


def test_the_rows_of_a_diffusion_model():
    chosen = Sampling(
        diffusion=DiffusionConfig(), steps=10, two_step=1.0, nfe=(5, 10, 19),
        solvers=("euler", "heun", "heun_churn", "dpmpp_2m", "dpmpp_2s"),
    )  # fmt: skip
    rows = [(row.name, row.nfe) for row in diffusion_samplers(chosen)]
    assert rows == [
        ("heun", 19), ("euler", 5), ("euler", 10), ("euler", 19), ("heun", 5), ("heun", 9), ("heun_churn", 5),
        ("heun_churn", 9), ("heun_churn", 19), ("dpmpp_2m", 5), ("dpmpp_2m", 10), ("dpmpp_2m", 19), ("dpmpp_2s", 5),
        ("dpmpp_2s", 9), ("dpmpp_2s", 19),
    ]  # fmt: skip
    (plain,) = diffusion_samplers(Sampling(diffusion=DiffusionConfig(), steps=18, two_step=1.0))
    assert torch.equal(plain.grid, ode_sampler(DiffusionConfig(), 18).grid)
    for row in diffusion_samplers(chosen):
        row(denoiser := Recorder(), SHAPE, source())
        assert len(denoiser.calls) == row.nfe
