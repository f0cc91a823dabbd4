"""Score identity distillation: value and gradient of a Gaussian generator in closed form, and the fake model's turn."""

import pytest
import torch
from exact import SD, START, data, exact, nets_of
from tiny import make_method
from torch import Tensor, nn

from cmcore.config import ConfigError
from cmcore.diffusion.grids import karras_grid
from cmcore.diffusion.precond import Denoiser, Labels
from cmcore.diffusion.settings import DiffusionConfig
from cmcore.methods.base import STUDENT, Nets
from cmcore.oracles import Gaussian
from cmcore.rng import Draws
from cmcore.sample.settings import Sampling

NARROW = DiffusionConfig(sigma_min=0.4999, sigma_max=0.5)  # all levels are 0.5
SIGMA, ROWS = 0.5, 400_000


class Generator(nn.Module):
    """a n for any noise sigma n."""

    def __init__(self, a: float) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.tensor(a, dtype=torch.float64))

    def forward(self, x: Tensor, sigma: Tensor, labels: Labels = None) -> Tensor:
        del labels
        return self.a * x / sigma[:, None, None, None]


class Scaled(nn.Module):
    """A denoiser times a number, 1."""

    def __init__(self, denoiser: Denoiser) -> None:
        super().__init__()
        self.inner, self.gain = denoiser, nn.Parameter(torch.ones((), dtype=torch.float64))

    def forward(self, x: Tensor, sigma: Tensor, labels: Labels = None) -> Tensor:
        return self.gain * self.inner(x, sigma, labels)


def nets(a: float, s: float, fake: nn.Module | None = None) -> Nets:
    """A generator of N(0, a^2), a teacher of N(0, s^2) and the exact fake model."""
    known = nets_of(Generator(a), exact(Gaussian(0.0, s))).modules
    return Nets({**known, "fake": fake or exact(Gaussian(0.0, a))})


def found(a: float, s: float, alpha: float) -> tuple[float, float]:
    """The mean of the loss without its normaliser, and its derivative in a."""
    known, draws = nets(a, s), Draws(1, 0, ROWS)
    method = make_method("sid", NARROW, alpha=alpha, sigma_init=SIGMA)
    out = method.loss(known, data(Gaussian(0.0, s), draws, (1, 1, 1)), START, draws)
    x = a * draws.normal((1, 1, 1), stream="latent").double()
    noisy = x + SIGMA * draws.normal((1, 1, 1), stream="noise").double()
    scale = (x - s**2 / (s**2 + SIGMA**2) * noisy).abs().flatten().clamp(min=1e-5)
    plain = (out.loss * scale).mean()
    return float(plain.detach()), float(torch.autograd.grad(plain, known.student.a)[0])


@pytest.mark.parametrize(
    ("a", "s", "alpha", "value", "slope"),
    [(1.0, 0.5, 1.2, -0.0225, 0.084), (1.0, 0.5, 1.0, 0.0, 0.12), (0.3, 0.5, 1.2, -0.003765, -0.11045)],
)
def test_value_and_gradient_are_those_of_the_gaussian(a: float, s: float, alpha: float, value: float, slope: float):
    """(1 - alpha) (A - B)^2 (a^2 + sigma^2), and 2 a (A - B) ((A - 1) - alpha (A - B)): the models' inputs count."""
    A, B = s**2 / (s**2 + SIGMA**2), a**2 / (a**2 + SIGMA**2)
    assert (1 - alpha) * (A - B) ** 2 * (a**2 + SIGMA**2) == pytest.approx(value, abs=1e-6)
    assert 2 * a * (A - B) * (A - 1 - alpha * (A - B)) == pytest.approx(slope, abs=1e-5)
    assert found(a, s, alpha) == (pytest.approx(value, abs=1e-3), pytest.approx(slope, abs=2e-3))


@pytest.mark.parametrize("s", [0.5, 1.1])
@pytest.mark.parametrize("alpha", [0.5, 1.0, 1.2])
def test_a_perfect_generator_is_left_alone(s: float, alpha: float):
    assert found(s, s, alpha) == (pytest.approx(0.0, abs=1e-12), pytest.approx(0.0, abs=1e-12))


def test_the_identity_of_the_scores():
    """E (D_teacher - D_fake).(D_fake - x_g) = 0 for the exact fake model, whence the loss for alpha = 1 (Eq. 20)."""
    a, s = 0.8, 0.4
    draws = Draws(4, 0, ROWS)
    x = a * draws.normal((1, 1, 1), stream="latent", dtype=torch.float64)
    noisy = x + SIGMA * draws.normal((1, 1, 1), stream="noise", dtype=torch.float64)
    sigma = torch.full((ROWS,), SIGMA, dtype=torch.float64)
    real, fake = (Gaussian(0.0, std).denoise(noisy, sigma) for std in (s, a))
    product, other = (real - fake) * (fake - x), (real - fake) * (real - x)
    assert abs(float(product.mean())) < 4 * float(product.std()) / ROWS**0.5
    assert abs(float(other.mean())) > 10 * float(other.std()) / ROWS**0.5


def test_the_fake_model_learns_to_denoise_generated_images():
    """Its gradient vanishes at the denoiser of N(0, a^2), not at the teacher, and does not reach the generator."""
    method, gradients = make_method("sid", P_mean=-0.7, P_std=0.3), []
    for fitted in (0.8, 0.5):
        fake, draws = Scaled(exact(Gaussian(0.0, fitted))), Draws(2, 0, 200_000)
        known = nets(0.8, 0.5, fake)
        loss = method.loss_of("fake", known, data(Gaussian(0.0, SD), draws, (1, 1, 1)), START, draws).loss
        gradients.append(float(torch.autograd.grad(loss.mean(), fake.gain, retain_graph=True)[0]))
        assert torch.autograd.grad(loss.mean(), known.student.a, allow_unused=True)[0] is None
    assert abs(gradients[0]) < 0.03
    assert abs(gradients[1]) > 0.3


def test_levels_turns_and_rows():
    method = make_method("sid", DiffusionConfig(), turns=2)
    seen: list[Tensor] = []

    def watching(x: Tensor, sigma: Tensor, labels: Labels = None) -> Tensor:
        del labels
        seen.append(sigma)
        return x

    draws = Draws(1, 0, 50_000)
    known = Nets({**nets(1.0, 0.5).modules, "teacher": watching})  # pyright: ignore[reportArgumentType]
    method.loss(known, data(Gaussian(0.0, SD), draws, (1, 1, 1)), START, draws)
    assert float(seen[0].max()) == pytest.approx(24.41, abs=0.02)
    assert float(seen[0].min()) == pytest.approx(0.002, rel=0.01)
    warped = (seen[0] ** (1 / 7) - 0.002 ** (1 / 7)) / (80.0 ** (1 / 7) - 0.002 ** (1 / 7))
    assert float(warped.median()) == pytest.approx(0.4, abs=0.01)
    assert float(karras_grid(6, 0.002, 80.0)[1]) == pytest.approx(24.41, abs=0.02)  # 0.8 of the way
    assert method.turns(START) == ("fake", "fake", STUDENT)
    sampling = Sampling(diffusion=method.diffusion, steps=3, two_step=0.8)
    assert [row.noise_levels for row in method.samplers(sampling)] == [(2.5,)]
    assert method.scan(sampling, (0.5,)) == []


def test_a_level_outside_the_noise_range_is_refused():
    with pytest.raises(ConfigError, match=r"sigma_init: expected .* at most diffusion.sigma_max = 2.0, got 2.5"):
        make_method("sid", DiffusionConfig(sigma_max=2.0))
