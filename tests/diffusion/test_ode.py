"""Single steps: local order on the Gaussian oracle, the published coefficients, and steps that end at zero."""

from itertools import pairwise

import pytest
import torch
from torch import Tensor

from cmcore.diffusion.ode import dpmpp_2m_coefficient, dpmpp_2m_step, dpmpp_2s_step, euler_step, heun_step, velocity
from cmcore.oracles import Gaussian, as_denoiser

ORACLE = Gaussian(mean=0.3, std=0.5)
DENOISER = as_denoiser(ORACLE)


def f64(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


@pytest.fixture
def x() -> Tensor:
    return torch.randn(3, 1, 2, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.mark.parametrize(("step", "order"), [(euler_step, 1), (heun_step, 2), (dpmpp_2s_step, 2)])
def test_local_error_falls_with_one_power_more_than_the_order(step, order: int, x: Tensor):
    sigma = f64(2.0, 1.0, 0.3)
    errors = []
    for h in (0.1, 0.05, 0.025):
        sigma_next = sigma * (1 - h)
        errors.append((step(DENOISER, x, sigma, sigma_next) - ORACLE.flow(x, sigma, sigma_next)).abs().max().log2())
    slopes = [(a - b).item() for a, b in pairwise(errors)]
    assert slopes == pytest.approx([order + 1] * 2, abs=0.15)


def test_velocity_is_minus_sigma_times_the_score(x: Tensor):
    sigma = f64(2.0, 1.0, 0.3)
    expected = -sigma.reshape(3, 1, 1, 1) * ORACLE.score(x, sigma)
    torch.testing.assert_close(velocity(DENOISER, x, sigma), expected)


def test_a_step_to_zero_gives_the_denoised_image_for_the_samples_that_take_it(x: Tensor):
    sigma = f64(2.0, 1.0, 0.3)
    torch.testing.assert_close(euler_step(DENOISER, x, sigma, f64(0, 0, 0)), ORACLE.denoise(x, sigma))
    mixed = heun_step(DENOISER, x, sigma, f64(1.0, 0.0, 0.1))
    torch.testing.assert_close(mixed[1], ORACLE.denoise(x, sigma)[1])
    torch.testing.assert_close(mixed[::2], heun_step(DENOISER, x[::2], sigma[::2], f64(1.0, 0.1)), rtol=0, atol=0)


def test_steps_are_per_sample(x: Tensor):
    sigma, sigma_next = f64(2.0, 1.0, 0.3), f64(1.5, 0.2, 0.1)
    together = heun_step(DENOISER, x, sigma, sigma_next)
    apart = [heun_step(DENOISER, x[i : i + 1], sigma[i : i + 1], sigma_next[i : i + 1]) for i in range(3)]
    torch.testing.assert_close(together, torch.cat(apart), rtol=0, atol=0)


def test_float32_state_stays_float32(x: Tensor):
    for step in (euler_step, heun_step):
        assert step(DENOISER, x.float(), f64(2, 1, 0.3), f64(1, 0.5, 0)).dtype == torch.float32


def test_dpmpp_coefficients():
    """Levels 5, 2, 1: r = ln 2.5 / ln 2 = 1.32193, so D_bar = 1.37824 D - 0.37824 D_prev."""
    assert dpmpp_2m_coefficient(f64(5.0), f64(2.0), f64(1.0)).item() == pytest.approx(0.37824, abs=5e-6)
    one = torch.ones(1, 1, 1, 1, dtype=torch.float64)
    # x_next = (1/2) x + (1/2) D_bar
    step = dpmpp_2m_step(8 * one, 4 * one, 2 * one, f64(5.0), f64(2.0), f64(1.0))
    assert step.item() == pytest.approx(4 + 0.5 * (1.378239 * 4 - 0.378239 * 2), abs=1e-5)


def test_dpmpp_without_history_is_euler_and_lands_on_the_denoised_image(x: Tensor):
    sigma, D = f64(2.0, 1.0, 0.3), ORACLE.denoise(x, f64(2.0, 1.0, 0.3))
    torch.testing.assert_close(
        dpmpp_2m_step(x, D, None, None, sigma, sigma / 3),
        euler_step(DENOISER, x, sigma, sigma / 3),
        rtol=1e-12,
        atol=1e-12,
    )
    torch.testing.assert_close(dpmpp_2m_step(x, D, x, 2 * sigma, sigma, 0 * sigma), D, rtol=0, atol=0)


def test_dpmpp_is_exact_where_the_prediction_is_constant():
    """A constant prediction has slope zero in lambda: the exponential integrator is then exact, whatever the step."""
    x, D = torch.full((1, 1, 1, 1), 7.0, dtype=torch.float64), torch.full((1, 1, 1, 1), -0.4, dtype=torch.float64)
    got = dpmpp_2m_step(x, D, D, f64(30.0), f64(20.0), f64(0.5))
    torch.testing.assert_close(got, D + (x - D) * 0.5 / 20.0)


def test_dpmpp_2s_by_hand(x: Tensor):
    """Levels 4 and 1: the middle is 2, x_mid = x/2 + D/2, and the step x/4 + 3/4 D_mid."""
    four, two, one = (torch.full((3,), level, dtype=torch.float64) for level in (4.0, 2.0, 1.0))
    D_mid = ORACLE.denoise((x + ORACLE.denoise(x, four)) / 2, two)
    torch.testing.assert_close(dpmpp_2s_step(DENOISER, x, four, one), x / 4 + 0.75 * D_mid)
