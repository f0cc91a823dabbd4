"""Preconditioning against a table of values, its limits, and TrigFlow."""

import pytest
import torch
from torch import Tensor, nn

from cmcore.diffusion.path import TrigFlow
from cmcore.diffusion.precond import Condition, Denoiser, boundary_scalings, edm_scalings, noise_coordinate
from cmcore.oracles import Gaussian
from cmcore.tensors import expand_like

SIGMA_DATA, EPSILON = 0.5, 0.002
# sigma, c_skip, c_out, c_in, c_noise, EDM weight, then the eps-shifted c_skip and c_out; up to six significant digits.
TABLE = [
    (0.002, 0.999984, 0.00199998, 1.99998, -1.55365, 250004, 1.0, 0.0),
    (0.5, 0.5, 0.353553, 1.41421, -0.173287, 8, 0.502004, 0.352139),
    (5.0, 0.00990099, 0.497519, 0.199007, 0.402359, 4.04, 0.00990884, 0.49732),
    (80.0, 3.9061e-05, 0.49999, 0.0124998, 1.09551, 4.00016, 3.90629e-05, 0.499978),
]
TRIG_TIMES = [(0.002, 0.004), (0.5, 0.785398), (5.0, 1.471128), (80.0, 1.564546), (0.821, 1.02378), (1.526, 1.25417)]


def f64(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


class Wobble(nn.Module):
    """A network with a parameter, for its dtype, and a nonlinear answer to all of its inputs."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.tensor(1.3, dtype=dtype))

    def forward(self, x: Tensor, c_noise: Tensor, labels: Tensor | None) -> Tensor:
        return torch.sin(self.gain * x + expand_like(c_noise, x)) + 2


@pytest.mark.parametrize("row", TABLE, ids=lambda row: f"sigma={row[0]}")
def test_scalings_table(row: tuple[float, ...]):
    sigma, c_skip, c_out, c_in, c_noise, weight, shifted_skip, shifted_out = row
    s, b = edm_scalings(f64(sigma), SIGMA_DATA), boundary_scalings(f64(sigma), SIGMA_DATA, EPSILON)
    got = torch.cat([*s, s.c_out**-2, b.c_skip, b.c_out, b.c_in, b.c_noise])
    # The loss weight is 1/c_out^2, so that the network's own error is weighted evenly (EDM, Eq. 6).
    expected = f64(c_skip, c_out, c_in, c_noise, weight, shifted_skip, shifted_out, c_in, c_noise)
    torch.testing.assert_close(got, expected, rtol=6e-6, atol=0)


@pytest.mark.parametrize(("sigma", "t"), TRIG_TIMES)
def test_trig_coordinate(sigma: float, t: float):
    assert edm_scalings(f64(sigma), SIGMA_DATA, "trig").c_noise.item() == pytest.approx(t, abs=6e-6)


def test_log1000_is_a_thousand_times_edm_s_coordinate_and_finite_at_zero():
    sigma = f64(0.002, 0.5, 80.0)
    torch.testing.assert_close(
        noise_coordinate(sigma, SIGMA_DATA, "log1000"), 1000 * noise_coordinate(sigma, SIGMA_DATA, "log")
    )
    assert noise_coordinate(torch.zeros(1), SIGMA_DATA, "log1000").isfinite()


def test_a_condition_reaches_the_network_as_it_is():
    seen = []

    def remember(module: nn.Module, inputs: tuple[object, ...]) -> None:
        seen.append(inputs[2])

    net = Wobble(torch.float64)
    net.register_forward_pre_hook(remember)
    condition = Condition(torch.zeros(1, dtype=torch.int64), torch.ones(1, 9))
    Denoiser(net, sigma_data=SIGMA_DATA)(torch.zeros(1, 1, 2, 2, dtype=torch.float64), f64(1.0), condition)
    assert seen[0] is condition


@pytest.mark.parametrize("level_dtype", [torch.float32, torch.float64])
def test_the_boundary_is_exact_bit_for_bit_when_shifted_and_only_then(level_dtype: torch.dtype):
    x = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    sigma = torch.full((4,), EPSILON, dtype=level_dtype)
    shifted = Denoiser(Wobble(torch.float32), sigma_data=SIGMA_DATA, epsilon=float(sigma[0]))
    plain = Denoiser(Wobble(torch.float32), sigma_data=SIGMA_DATA)
    assert torch.equal(shifted(x, sigma), x)
    assert not torch.equal(plain(x, sigma), x)
    torch.testing.assert_close(plain(x, sigma), x, rtol=0, atol=0.01)


def test_plain_scalings_give_unit_variance_to_what_the_network_sees_and_is_asked_for():
    """Two of the requirements that EDM derives its scalings from (App. B.6), for data of variance sigma_data^2."""
    sigma = f64(0.002, 0.1, 0.5, 3.0, 80.0)
    s = edm_scalings(sigma, SIGMA_DATA)
    one = torch.ones_like(sigma)
    torch.testing.assert_close(s.c_in**2 * (SIGMA_DATA**2 + sigma**2), one)
    target_variance = ((1 - s.c_skip) ** 2 * SIGMA_DATA**2 + s.c_skip**2 * sigma**2) / s.c_out**2
    torch.testing.assert_close(target_variance, one)


def test_on_gaussian_data_the_optimal_network_is_zero():
    sigma, x = f64(0.01, 0.5, 9.0), torch.ones(3, 1, 2, 2, dtype=torch.float64)
    skip = edm_scalings(sigma, SIGMA_DATA).c_skip
    torch.testing.assert_close(expand_like(skip, x) * x, Gaussian(0.0, SIGMA_DATA).denoise(x, sigma))


def test_trigflow_is_edm_with_the_network_s_sign_turned():
    """f = cos t x_t - sin t sigma_data F_trig(x_t / sigma_data, t) with F_trig = -F (arXiv 2410.11081, Eq. 4)."""
    net = Wobble(torch.float64)
    x = torch.randn(5, 1, 3, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    sigma = f64(0.002, 0.1, 0.5, 5.0, 80.0)
    t = TrigFlow(SIGMA_DATA).time(sigma)
    cos, sin = expand_like(torch.cos(t), x), expand_like(torch.sin(t), x)
    x_t = cos * x
    F_trig = -net(x_t / SIGMA_DATA, t, None)
    D = Denoiser(net, sigma_data=SIGMA_DATA, coordinate="trig")(x, sigma)
    torch.testing.assert_close(D, cos * x_t - sin * SIGMA_DATA * F_trig, rtol=1e-12, atol=1e-12)


def test_state_keeps_its_dtype_and_the_network_its_own():
    denoiser = Denoiser(Wobble(torch.float32), sigma_data=SIGMA_DATA)
    for dtype in (torch.float32, torch.float64):
        assert denoiser(torch.zeros(2, 1, 2, 2, dtype=dtype), f64(0.1, 1.0)).dtype == dtype


def test_impossible_sigma_data_is_refused():
    with pytest.raises(ValueError, match="sigma_data"):
        Denoiser(Wobble(torch.float32), sigma_data=0.0)
