"""The oracles themselves, against densities differentiated automatically and against conservation of probability."""

import math

import pytest
import torch
from torch import Tensor

from cmcore.oracles import FiniteData, Gaussian, GaussianMixture, as_consistency, as_denoiser
from cmcore.tensors import expand_like


def f64(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def mixture(steps: int = 200) -> GaussianMixture:
    return GaussianMixture(f64(0.2, 0.5, 0.3), noise(3, 1, 2, 2, seed=5), f64(0.3, 0.1, 0.6), steps)


def log_density(oracle: GaussianMixture, x: Tensor, sigma: Tensor) -> Tensor:
    """Written from torch.distributions, which the oracle does not use."""
    scale = (oracle.std**2 + sigma[:, None] ** 2).sqrt()  # (B, K)
    normal = torch.distributions.Normal(oracle.means.flatten(1), scale[..., None])
    return (oracle.weights.log() + normal.log_prob(x.flatten(1)[:, None]).sum(2)).logsumexp(1)


SIGMA = f64(0.01, 0.2, 0.7, 3.0, 50.0)


def test_gaussian_denoiser_obeys_tweedie_s_formula():
    x, oracle = noise(5, 1, 2, 2), Gaussian(mean=noise(1, 2, 2, seed=1), std=0.5)
    x_minus_D = x - oracle.denoise(x, SIGMA)
    torch.testing.assert_close(-x_minus_D / expand_like(SIGMA**2, x), oracle.score(x, SIGMA), rtol=1e-9, atol=1e-9)
    marginal = torch.distributions.Normal(oracle.mean, expand_like((0.25 + SIGMA**2).sqrt(), x))
    leaf = x.clone().requires_grad_()
    (score,) = torch.autograd.grad(marginal.log_prob(leaf).sum(), leaf)
    torch.testing.assert_close(oracle.score(x, SIGMA), score)


def test_gaussian_flow_solves_the_ode():
    x, oracle = noise(5, 1, 2, 2), Gaussian(mean=0.3, std=noise(1, 2, 2, seed=2).exp())
    here = f64(80.0, 20.0, 2.0, 0.5, 0.01)
    step = 1e-5 * SIGMA
    slope = (oracle.flow(x, here, SIGMA + step) - oracle.flow(x, here, SIGMA - step)) / expand_like(2 * step, x)
    y = oracle.flow(x, here, SIGMA)
    torch.testing.assert_close(slope, (y - oracle.denoise(y, SIGMA)) / expand_like(SIGMA, x), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(oracle.flow(x, here, here), x)


def test_gaussian_consistency_is_the_same_along_a_trajectory_and_exact_at_the_boundary():
    x, oracle = noise(5, 1, 2, 2), Gaussian(mean=-0.2, std=0.5)
    end = oracle.consistency(x, SIGMA, 0.002)
    for other in (0.1, 1.0, 80.0):
        level = torch.full_like(SIGMA, other)
        torch.testing.assert_close(oracle.consistency(oracle.flow(x, SIGMA, level), level, 0.002), end)
    assert torch.equal(Gaussian(0.0, 0.5).consistency(x, torch.full_like(SIGMA, 0.002), 0.002), x)


def test_gaussian_consistency_sends_the_terminal_marginal_to_the_data():
    """Standard deviation sqrt(s^2 + T^2) is mapped to sqrt(s^2 + eps^2): with eps = 0, the data's own."""
    oracle, T = Gaussian(mean=0.3, std=0.5), f64(80.0)
    one_sd = torch.full((1, 1, 1, 1), 0.3 + math.hypot(0.5, 80.0), dtype=torch.float64)
    assert oracle.consistency(one_sd, T, 0.0).item() == pytest.approx(0.3 + 0.5, abs=1e-12)


def test_mixture_score_is_the_gradient_of_its_log_density():
    x, oracle = noise(5, 1, 2, 2), mixture()
    leaf = x.clone().requires_grad_()
    (score,) = torch.autograd.grad(log_density(oracle, leaf, SIGMA).sum(), leaf)
    torch.testing.assert_close(oracle.score(x, SIGMA), score, rtol=1e-8, atol=1e-8)


def test_a_mixture_of_one_is_the_gaussian():
    mean = noise(1, 1, 2, 2, seed=7)
    one, gaussian = GaussianMixture(f64(1.0), mean, f64(0.5)), Gaussian(mean[0], 0.5)
    x, end = noise(5, 1, 2, 2), torch.full_like(SIGMA, 0.05)
    torch.testing.assert_close(one.denoise(x, SIGMA), gaussian.denoise(x, SIGMA))
    torch.testing.assert_close(one.flow(x, SIGMA, end), gaussian.flow(x, SIGMA, end), rtol=1e-8, atol=1e-8)


def test_mixture_flow_conserves_probability_in_one_dimension():
    """Trajectories cannot cross on a line, so each keeps its quantile: F_r(flow(x)) = F_t(x). No solver in it."""
    oracle = GaussianMixture(f64(0.3, 0.7), f64(-1.0, 0.8).reshape(2, 1), f64(0.2, 0.1))

    def cdf(x: Tensor, sigma: float) -> Tensor:
        return (oracle.weights * torch.special.ndtr((x - oracle.means.T) / (oracle.std**2 + sigma**2).sqrt())).sum(1)

    x = torch.linspace(-60, 60, 13, dtype=torch.float64)[:, None]
    for sigma_next in (3.0, 0.3, 0.002):
        y = oracle.flow(x, f64(20.0).expand(13), f64(sigma_next).expand(13))
        torch.testing.assert_close(cdf(y, sigma_next), cdf(x, 20.0), rtol=0, atol=1e-7)


def test_mixture_flow_converges_at_order_four():
    x, start, end = 2 * noise(5, 1, 2, 2), f64(2.0).expand(5), f64(0.1).expand(5)
    exact = mixture(800).flow(x, start, end)
    coarse, fine = ((mixture(n).flow(x, start, end) - exact).abs().max() for n in (25, 50))
    assert torch.log2(coarse / fine).item() == pytest.approx(4, abs=0.5)


def test_two_points_have_a_hyperbolic_tangent_for_a_denoiser():
    a, x = 0.8, torch.linspace(-3, 3, 5, dtype=torch.float64)[:, None]
    two = FiniteData(f64(a, -a).reshape(2, 1))
    torch.testing.assert_close(two.denoise(x, SIGMA), a * torch.tanh(a * x / SIGMA[:, None] ** 2))


def test_finite_data_limits():
    images = noise(6, 1, 3, 3)
    data = FiniteData(images)
    torch.testing.assert_close(data.denoise(images + 1e-3, f64(0.01).expand(6)), images)
    far = data.denoise(images[:1], f64(1e6))
    torch.testing.assert_close(far[0], images.mean(0), rtol=0, atol=1e-9)
    end = as_consistency(data, 0.002)(80 * noise(4, 1, 3, 3, seed=9), f64(80.0).expand(4), None)
    distance = torch.cdist(end.flatten(1), images.flatten(1)).min(1).values
    assert (distance < 0.002 * 3 * 3).all(), "the flow of a finite data set ends on one of its images"


def test_stand_ins_are_called_like_denoisers():
    oracle, x = Gaussian(0.1, 0.5), noise(5, 1, 2, 2)
    labels = torch.zeros(5, dtype=torch.int64)
    assert torch.equal(as_denoiser(oracle)(x, SIGMA, labels), oracle.denoise(x, SIGMA))
    assert torch.equal(as_consistency(oracle, 0.002)(x, SIGMA), oracle.consistency(x, SIGMA, 0.002))


def test_impossible_requests_are_refused():
    with pytest.raises(ValueError, match="shape"):
        GaussianMixture(f64(1.0), noise(2, 1), f64(0.1, 0.1))
    with pytest.raises(ValueError, match="sigma_next > 0"):
        FiniteData(noise(2, 1)).flow(noise(1, 1), f64(1.0), f64(0.0))
