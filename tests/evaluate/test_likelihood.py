"""Bits per dimension: closed forms of Gaussians, the order of the solver, and an estimate without bias."""

import math

import pytest
import torch
from exact import exact
from maps import exact_map
from tiny import make_method
from torch import Tensor

from cmcore.diffusion.settings import DiffusionConfig
from cmcore.evaluate.likelihood import GREYS, bits_per_dimension, dequantised, log_density, measured
from cmcore.oracles import FiniteData, Gaussian, as_denoiser
from cmcore.rng import Draws

EDM = DiffusionConfig()
GAUSSIAN = Gaussian(0.1, 0.6)


def points(rows: int = 8) -> tuple[Tensor, Tensor]:
    draws = Draws(1, 0, rows)
    x = GAUSSIAN.sample(draws.normal((1, 2, 2), stream="x", dtype=torch.float64))
    return x, torch.where(draws.uniform((1, 2, 2), stream="e") < 0.5, -1.0, 1.0).double()


def exact_log_density(x: Tensor, d: DiffusionConfig) -> Tensor:
    """Of the flow of a Gaussian that begins at N(0, sigma_max^2): x - m scales by the ratio of the deviations."""
    low, high = math.hypot(0.6, d.sigma_min), math.hypot(0.6, d.sigma_max)
    end = 0.1 + (x - 0.1) * high / low
    log_p = -(end**2) / (2 * d.sigma_max**2) - 0.5 * math.log(2 * math.pi * d.sigma_max**2)
    return (log_p + math.log(high / low)).sum((1, 2, 3))


@pytest.mark.parametrize("d", [EDM, DiffusionConfig(sigma_min=0.1, sigma_max=3.0)])
def test_the_density_of_a_gaussian_is_the_closed_form(d: DiffusionConfig):
    x, signs = points()
    errors = [
        float((log_density(as_denoiser(GAUSSIAN), x, signs, d, steps) - exact_log_density(x, d)).abs().max())
        for steps in (20, 40)
    ]
    assert errors[1] < 1e-3
    assert errors[0] / errors[1] == pytest.approx(16, abs=4)  # order 4


def test_with_much_noise_it_is_the_density_of_the_data():
    """But for the mean, which N(0, sigma_max^2) does not know: it costs m x_T / sigma_max^2 a pixel."""
    x, signs = points()
    std = math.hypot(0.6, EDM.sigma_min)
    true = (-((x - 0.1) ** 2) / (2 * std**2) - 0.5 * math.log(2 * math.pi * std**2)).sum((1, 2, 3))
    found = log_density(as_denoiser(GAUSSIAN), x, signs, EDM, 60)
    torch.testing.assert_close(found, true, rtol=0, atol=2e-2)


def test_the_estimate_of_the_divergence_has_no_bias():
    """A mixture, whose pixels depend on one another: the mean over all 16 sign patterns is the trace."""
    data = FiniteData(torch.tensor([[-0.5, -0.4, 0.3, 0.5], [0.5, 0.2, -0.3, 0.1]], dtype=torch.float64)[:, None, None])
    x = torch.tensor([0.1, -0.2, 0.05, 0.3], dtype=torch.float64).reshape(1, 1, 1, 4)
    sigma = torch.tensor([0.4], dtype=torch.float64)
    h = 1e-6 * torch.eye(4, dtype=torch.float64).reshape(4, 1, 1, 4)
    D_up, D_down = (data.denoise(x + shift, sigma.expand(4)) for shift in (h, -h))  # not jacrev: wrong through cdist
    J = torch.eye(4) - ((D_up - D_down) / 2e-6).reshape(4, 4)
    assert float((J - J.diag().diag()).abs().max()) > 0.1
    patterns = torch.cartesian_prod(*[torch.tensor([-1.0, 1.0])] * 4).double().reshape(16, 1, 1, 4)
    d = DiffusionConfig(sigma_min=0.4, sigma_max=0.4 + 1e-6)
    start = log_density(as_denoiser(data), x.expand(16, 1, 1, 4), patterns, d, 1)
    width = math.log(d.sigma_max / d.sigma_min)
    end = x + width * (x - data.denoise(x, sigma))
    prior = (-(end**2) / (2 * d.sigma_max**2) - 0.5 * math.log(2 * math.pi * d.sigma_max**2)).sum()
    each = (start - prior) / width
    assert float(each.std()) > 0.1
    assert float(each.mean()) == pytest.approx(float(J.trace()), abs=1e-3)


def test_bits_count_grey_levels():
    """Dequantised pixels lie within half a grey level of those that training saw; bits are of the levels."""
    images = torch.tensor([0, 255, 128, 7], dtype=torch.uint8).reshape(1, 1, 2, 2)
    low, high = (dequantised(images, torch.full((1, 1, 2, 2), u)) for u in (0.0, 1.0))
    torch.testing.assert_close((low + high) / 2, images.double() / 127.5 - 1)
    torch.testing.assert_close(high - low, torch.full((1, 1, 2, 2), 1 / GREYS, dtype=torch.float64))
    # A density of pixels of deviation 0.6 is nearly flat over a grey level: -log2 of its mass is the answer.
    images = torch.randint(0, 256, (64, 1, 2, 2), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    bits = bits_per_dimension(as_denoiser(GAUSSIAN), images, EDM, steps=40, seed=1)
    normal = torch.distributions.Normal(0.1, math.hypot(0.6, EDM.sigma_min))
    centres = images.double() / 127.5 - 1
    mass = normal.cdf(centres + 0.5 / GREYS) - normal.cdf(centres - 0.5 / GREYS)
    expected = -mass.log2().mean((1, 2, 3))
    assert float((bits - expected).abs().max()) < 0.03
    assert measured(bits).value == pytest.approx(float(expected.mean()), abs=0.005)


def test_an_image_has_its_own_noise():
    images = torch.full((4, 1, 2, 2), 9, dtype=torch.uint8)
    whole = bits_per_dimension(as_denoiser(GAUSSIAN), images, EDM, steps=8, seed=1)
    part = bits_per_dimension(as_denoiser(GAUSSIAN), images[2:], EDM, steps=8, seed=1, indices=[2, 3])
    assert torch.equal(whole[2:], part)
    assert len(whole.unique()) == 4


def test_a_trajectory_model_has_the_likelihood_of_the_denoiser_in_it():
    x, signs = points()
    d = DiffusionConfig(sigma_min=0.1, sigma_max=3.0)
    inner = make_method("ctm").diffusion_model(exact_map(GAUSSIAN))
    assert inner is not None
    torch.testing.assert_close(
        log_density(inner, x, signs, d, 20), log_density(exact(GAUSSIAN), x, signs, d, 20), rtol=1e-9, atol=1e-9
    )


def test_only_models_with_a_denoiser_have_one():
    model = exact(GAUSSIAN)
    assert make_method("edm").diffusion_model(model) is model
    assert make_method("rf").diffusion_model(model) is model
    assert make_method("ect").diffusion_model(model) is None
    assert make_method("imm").diffusion_model(model) is None
