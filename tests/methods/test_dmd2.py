"""Distribution matching: gradients of a Gaussian generator in closed form, and the fake model's own turn."""

import math

import pytest
import torch
from exact import SD, START, data, exact, nets_of
from tiny import make_method
from torch import Tensor, nn

from cmcore.diffusion.grids import karras_grid
from cmcore.diffusion.precond import Denoiser, Labels, Scalings
from cmcore.diffusion.settings import DiffusionConfig
from cmcore.methods.base import STUDENT, Nets
from cmcore.oracles import Gaussian
from cmcore.rng import Draws
from cmcore.sample.settings import Sampling

NARROW = DiffusionConfig(sigma_min=0.4999, sigma_max=0.5)  # all levels are 0.5


class Generator(nn.Module):
    """a n for any noise sigma n."""

    def __init__(self, a: float) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.tensor(a, dtype=torch.float64))

    def forward(self, x: Tensor, sigma: Tensor, labels: Labels = None) -> Tensor:
        del labels
        return self.a * x / sigma[:, None, None, None]


def nets(a: float, s: float, fake: Denoiser | None = None) -> Nets:
    """A generator of N(0, a^2), a teacher of N(0, s^2) and the exact fake model."""
    known = nets_of(Generator(a), exact(Gaussian(0.0, s))).modules
    return Nets({**known, "fake": fake or exact(Gaussian(0.0, a))})


@pytest.mark.parametrize(
    ("a", "s", "expected"), [(1.0, 0.5, 0.3), (0.3, 0.5, -0.070588), (0.5, 0.5, 0.0), (1.1, 1.1, 0.0)]
)
def test_the_gradient_is_that_of_the_divergence(a: float, s: float, expected: float):
    """sigma^2 dKL/da without the normaliser, which is E|x_g - D_teacher|."""
    known, draws, method = nets(a, s), Draws(1, 0, 200_000), make_method("dmd2", NARROW)
    out = method.loss(known, data(Gaussian(0.0, s), draws, (1, 1, 1)), START, draws)
    # With one pixel the normaliser differs from image to image: weighted by it, the mean is the plain gradient.
    x = known.student.a.detach() * draws.normal((1, 1, 1), stream="latent").double()
    sigma = 0.5
    noisy = x + sigma * draws.normal((1, 1, 1), stream="noise").double()
    scale = (x - s**2 / (s**2 + sigma**2) * noisy).abs().flatten()
    found = torch.autograd.grad((out.loss * scale).sum(), known.student.a)[0] / len(scale)
    assert float(found) == pytest.approx(expected, abs=3e-3)
    if (a, s) == (1.0, 0.5):
        assert float(out.scalars["scale"]) == pytest.approx(0.446031, abs=5e-3)


def test_the_fake_model_learns_to_denoise_generated_images():
    """Its gradient vanishes at the denoiser of N(0, a^2), not at the teacher, and does not reach the generator."""
    method, found = make_method("dmd2", NARROW), []
    for fitted in (0.8, 0.5):
        known, draws = nets(0.8, 0.5, exact(Gaussian(0.0, fitted))), Draws(2, 0, 200_000)
        # The gain scales F, which is zero where s is sigma_data: shift D itself.
        probe = Scaled(known["fake"])
        known = Nets({**known.modules, "fake": probe})
        loss = method.loss_of("fake", known, data(Gaussian(0.0, SD), draws, (1, 1, 1)), START, draws).loss
        found.append(float(torch.autograd.grad(loss.mean(), probe.gain, retain_graph=True)[0]))
        assert torch.autograd.grad(loss.mean(), known.student.a, allow_unused=True)[0] is None
    assert abs(found[0]) < 0.03
    assert abs(found[1]) > 0.5


class Scaled(nn.Module):
    """A denoiser times a number, 1."""

    def __init__(self, denoiser: Denoiser) -> None:
        super().__init__()
        self.inner, self.gain = denoiser, nn.Parameter(torch.ones((), dtype=torch.float64))

    def forward(self, x: Tensor, sigma: Tensor, labels: Labels = None) -> Tensor:
        return self.gain * self.inner(x, sigma, labels)


def test_levels_are_those_of_the_grid():
    method, draws = make_method("dmd2", DiffusionConfig()), Draws(1, 0, 200_000)
    grid = karras_grid(1000, 0.002, 80.0).flip(0)
    sigma = method._levels(draws, 20, 981)
    assert torch.equal(sigma.unique(), grid[20:981])
    assert (float(sigma.min()), float(sigma.max())) == (pytest.approx(0.0032, abs=1e-4), pytest.approx(72.05, abs=0.02))


def test_a_step_is_one_turn_of_the_generator_and_some_of_the_fake_model():
    method = make_method("dmd2", turns=3)
    assert method.turns(START) == (STUDENT, "fake", "fake", "fake")
    sampling = Sampling(diffusion=method.diffusion, steps=3, two_step=0.8)
    assert [row.noise_levels for row in method.samplers(sampling)] == [(20.0,)]
    assert method.scan(sampling, (0.5,)) == []


class BestLogit(nn.Module):
    """The logarithm of the ratio of N(0, s^2 + t^2) to N(0, a^2 + t^2), times a number."""

    def __init__(self, a: float, s: float) -> None:
        super().__init__()
        self.a, self.s, self.gain = a, s, nn.Parameter(torch.ones((), dtype=torch.float64))

    def scalings(self, sigma: Tensor) -> Scalings:
        return Scalings(sigma, sigma, torch.ones_like(sigma), sigma)

    def raw(self, x: Tensor, sigma: Tensor, labels: Labels) -> Tensor:
        del labels
        fake, real = self.a**2 + sigma**2, self.s**2 + sigma**2
        fake, real = (variance[:, None, None, None] for variance in (fake, real))
        return self.gain * (x**2 * (1 / fake - 1 / real) / 2 + (fake / real).log() / 2)


def with_discriminator(a: float, s: float) -> Nets:
    return Nets({**nets(a, s).modules, "discriminator": BestLogit(a, s)})


def test_the_best_discriminator_is_left_alone():
    """Its gradient vanishes at the logarithm of the ratio, and it knows nothing where both are equal."""
    logit = BestLogit(1.0, 0.5)
    x = torch.ones(1, 1, 1, 1, dtype=torch.float64)
    found = logit.raw(x, torch.tensor([0.5], dtype=torch.float64), None)
    assert float(found.detach()) == pytest.approx(-0.141855, abs=1e-6)
    method, slopes = make_method("dmd2", NARROW, gan=3e-3), []
    for gain in (1.0, 0.3):
        known, draws = with_discriminator(1.0, 0.5), Draws(5, 0, 400_000)
        known["discriminator"].gain.data.fill_(gain)
        loss = method.loss_of("discriminator", known, data(Gaussian(0.0, 0.5), draws, (1, 1, 1)), START, draws).loss
        slopes.append(float(torch.autograd.grad(loss.mean(), known["discriminator"].gain, retain_graph=True)[0]))
        assert torch.autograd.grad(loss.mean(), known.student.a, allow_unused=True)[0] is None
    assert abs(slopes[0]) < 2e-3
    assert slopes[1] < -0.05
    known, draws = with_discriminator(0.5, 0.5), Draws(5, 0, 1000)
    batch = data(Gaussian(0.0, 0.5), draws, (1, 1, 1))
    equal = method.loss_of("discriminator", known, batch, START, draws).loss
    assert float(equal.detach().mean()) == pytest.approx(2 * math.log(2))
    assert float(method.loss(known, batch, START, draws).scalars["adversarial"]) == pytest.approx(math.log(2))


def test_the_adversarial_term_pulls_the_generator_towards_the_data():
    """Of the same sign as the divergence, and nothing at the optimum."""
    found = []
    for a in (1.0, 0.5, 0.3):
        known, draws = with_discriminator(a, 0.5), Draws(1, 0, 200_000)
        batch, slopes = data(Gaussian(0.0, 0.5), draws, (1, 1, 1)), []
        for gan in (0.0, 1.0):
            loss = make_method("dmd2", NARROW, gan=gan).loss(known, batch, START, draws).loss.mean()
            slopes.append(float(torch.autograd.grad(loss, known.student.a)[0]))
        found.append(slopes[1] - slopes[0])
    assert found[0] > 0.05
    assert found[1] == pytest.approx(0, abs=1e-9)
    assert found[2] < -0.01


def test_the_discriminator_takes_its_turns_with_the_fake_model():
    method = make_method("dmd2", turns=2, gan=3e-3)
    assert method.turns(START) == (STUDENT, "fake", "discriminator", "fake", "discriminator")
    assert set(make_method("dmd2").networks) == {"teacher", "fake"}
