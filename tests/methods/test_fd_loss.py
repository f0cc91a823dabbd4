"""Post-training on the Frechet distance: its value and gradient, where it rests, and whose images it is of."""

from functools import cached_property

import numpy as np
import pytest
import torch
from exact import START, data, nets_of
from registry import entry
from tiny import DIFFUSION, batches, make_method, make_state
from torch import Tensor, nn

from cmcore.config import ConfigError
from cmcore.diffusion.precond import Labels
from cmcore.evaluate.features import NetworkExtractor
from cmcore.evaluate.frechet import frechet_distance
from cmcore.evaluate.moments import Moments
from cmcore.layers.classifier import shipped_classifier, shipped_moments
from cmcore.methods.base import Batch, Nets
from cmcore.methods.fd_loss import Config, FDLoss, frechet
from cmcore.oracles import Gaussian
from cmcore.rng import Draws

NAME = "digits_cnn_4a0598e6"


def root(cov: Tensor) -> Tensor:
    values, vectors = torch.linalg.eigh(cov)
    return (vectors * values.sqrt()) @ vectors.T


def features(rows: int, D: int, stream: str) -> Tensor:
    """Correlated features, float64."""
    draws = Draws(3, 0, rows)
    mixing = torch.randn(D, D, generator=torch.Generator().manual_seed(len(stream)), dtype=torch.float64)
    return draws.normal((D,), stream=stream, dtype=torch.float64) @ mixing + 0.3


def moments(f: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and covariance with 1/n, of which the influence is the derivative."""
    mean = f.mean(0)
    return mean, (f - mean).T @ (f - mean) / len(f)


def test_the_value_is_that_of_the_evaluation_and_of_the_closed_form():
    (m, S), (m_r, S_r) = moments(features(50, 5, "fake")), moments(features(70, 5, "data"))
    expected = frechet_distance(Moments(50, m, S), Moments(70, m_r, S_r))
    assert float(frechet(m, S, m_r, root(S_r)).distance) == pytest.approx(expected, rel=1e-10)
    eye, zero = torch.eye(4, dtype=torch.float64), torch.zeros(4, dtype=torch.float64)
    found = frechet(zero, 0.81 * eye, zero, 0.5 * eye)
    assert float(found.distance) == pytest.approx(4 * (0.9 - 0.5) ** 2)
    torch.testing.assert_close(found.by_cov, (1 - 0.5 / 0.9) * eye)


def test_the_gradient_is_that_of_the_distance_by_central_differences():
    f, (m_r, S_r) = features(12, 4, "fake"), moments(features(30, 4, "data"))
    real_root, h = root(S_r), 1e-5

    def distance(f: Tensor) -> float:
        return float(frechet(*moments(f), m_r, real_root).distance)

    numeric = torch.zeros_like(f)
    for place in np.ndindex(*f.shape):
        step = torch.zeros_like(f)
        step[place] = h
        numeric[place] = (distance(f + step) - distance(f - step)) / (2 * h)
    f.requires_grad_()
    influence = frechet(*moments(f.detach()), m_r, real_root).influence(f)
    found = torch.autograd.grad(influence.sum() / len(f), f)[0]
    torch.testing.assert_close(found, numeric, rtol=1e-6, atol=1e-8)
    assert float(numeric.abs().max()) > 1e-2


def test_equal_moments_are_left_alone_and_a_collapse_is_not_infinite():
    f = features(40, 4, "data")
    m, S = moments(f)
    found = frechet(m, S, m, root(S))
    assert float(found.distance) == pytest.approx(0, abs=1e-9)
    assert float(found.by_mean.abs().max()) == 0
    assert float(found.by_cov.abs().max()) < 1e-6
    flat = frechet(m, torch.zeros_like(S), m, root(S))
    assert flat.influence(f).isfinite().all()


class Pixels(nn.Module):
    """Pixels as features."""

    def features(self, x: Tensor) -> Tensor:
        return x.flatten(1)


class Generator(nn.Module):
    """m + a n for any noise sigma n."""

    def __init__(self, a: float, m: float = 0.0) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.tensor(a, dtype=torch.float64))
        self.m = nn.Parameter(torch.tensor(m, dtype=torch.float64))

    def forward(self, x: Tensor, sigma: Tensor, labels: Labels = None) -> Tensor:
        del labels
        return self.m + self.a * x / sigma[:, None, None, None]


class TowardsGaussian(FDLoss):
    """Towards pixels of N(0, 0.1^2)."""

    @cached_property
    def real(self) -> tuple[Tensor, Tensor]:
        return torch.zeros(4, dtype=torch.float64), 0.1 * torch.eye(4, dtype=torch.float64)


@pytest.mark.parametrize(("a", "m"), [(0.2, 0.05), (0.05, -0.03), (0.1, 0.0)])
def test_a_gaussian_generator_descends_the_closed_form(a: float, m: float):
    """d ((a - s)^2 + m^2), whose gradient is 2 d (a - s) and 2 d m."""
    method, student = TowardsGaussian(Config(batches=10), DIFFUSION), Generator(a, m)
    known, draws = Nets({**nets_of(student).modules, "extractor": Pixels()}), Draws(1, 0, 20_000)  # pyright: ignore[reportArgumentType]
    out = method.loss(known, data(Gaussian(0.0, 0.1), draws), START, draws)
    by_a, by_m = torch.autograd.grad(out.loss.mean(), [student.a, student.m])
    assert float(out.scalars["fd"]) == pytest.approx(4 * ((a - 0.1) ** 2 + m**2), abs=1e-3)
    assert float(by_a) == pytest.approx(8 * (a - 0.1), abs=0.02)
    assert float(by_m) == pytest.approx(8 * m, abs=0.02)


def test_pixels_outside_the_range_are_measured_as_they_are_shown():
    method, student = TowardsGaussian(Config(batches=1), DIFFUSION), Generator(0.0, 3.0)
    known, draws = Nets({**nets_of(student).modules, "extractor": Pixels()}), Draws(1, 0, 100)  # pyright: ignore[reportArgumentType]
    out = method.loss(known, data(Gaussian(0.0, 0.1), draws), START, draws)
    assert float(out.scalars["fd"]) == pytest.approx(4 * (1 + 0.1**2), rel=1e-3)


def test_the_population_is_the_same_for_every_share_of_a_batch():
    method = make_method("fd_loss", batches=2)
    state = make_state(method, noise=0.3)
    whole = Draws(1, 32, 16)
    expected = method.loss(state.nets, batches(whole), START, whole).loss
    parts = []
    for rows in (slice(0, 4), slice(4, 16)):
        draws = Draws(1, 32, 16, rows)
        parts.append(method.loss(state.nets, batches(draws), START, draws).loss)
    torch.testing.assert_close(torch.cat(parts), expected)


def test_shipped_moments_are_those_of_the_digits():
    sklearn = pytest.importorskip("sklearn.datasets")
    grey = sklearn.load_digits().images
    images = torch.from_numpy(np.round(grey * 255 / 16).astype(np.uint8))[:, None]
    found = Moments.of(NetworkExtractor(shipped_classifier(NAME), "digits_cnn")(images))
    mean, cov = shipped_moments(NAME)
    torch.testing.assert_close(mean, found.mean, rtol=0, atol=1e-4)
    torch.testing.assert_close(cov, found.cov, rtol=0, atol=1e-3)


def test_what_it_cannot_do_is_refused():
    with pytest.raises(ConfigError, match=rf"extractor: expected a classifier of the project, {NAME}, .*got 'mine'"):
        make_method("fd_loss", extractor="mine")
    method = make_method("fd_loss", **entry("fd_loss").short)
    draws = Draws(1, 0, 16)
    labelled = Batch(batches(draws).x, torch.zeros(16, dtype=torch.int64))
    with pytest.raises(ValueError, match="expected an unconditional network"):
        method.loss(make_state(method).nets, labelled, START, draws)
