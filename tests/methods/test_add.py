"""Adversarial distillation: closed values of hinge loss and penalty, and of the teacher, as target and as features."""

import math

import pytest
import torch
from exact import START, data, exact, nets_of
from tiny import DIFFUSION, batches, make_method, make_state
from torch import Tensor, nn

from cmcore.diffusion.grids import karras_grid
from cmcore.diffusion.precond import Labels, edm_scalings
from cmcore.diffusion.settings import DiffusionConfig
from cmcore.layers.blocks import block_maps, blocks
from cmcore.layers.heads import GROUP, GroupedBatchNorm, GroupHead, Heads, gradient_penalty, hinge_fake, hinge_real
from cmcore.methods.add import DISCRIMINATOR, EXTRACTOR
from cmcore.methods.base import STUDENT, Batch, Nets
from cmcore.oracles import Gaussian
from cmcore.rng import Draws
from cmcore.sample.settings import Sampling

NARROW = DiffusionConfig(sigma_min=0.4999, sigma_max=0.5)  # all levels are 0.5


class Maps(nn.Module):
    """The image itself as the one feature map."""

    def maps(self, x: Tensor) -> list[Tensor]:
        return [x]


class Mean(nn.Module):
    """w times the mean of the maps as the one logit."""

    def __init__(self, w: float) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.tensor(w))

    def forward(self, maps: list[Tensor]) -> Tensor:
        return self.w * torch.stack([values.mean((1, 2, 3)) for values in maps]).mean(0)[:, None]


class Generator(nn.Module):
    """m + a n for any noise sigma n."""

    def __init__(self, a: float, m: float = 0.0) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.tensor(a, dtype=torch.float64))
        self.m = nn.Parameter(torch.tensor(m, dtype=torch.float64))

    def forward(self, x: Tensor, sigma: Tensor, labels: Labels = None) -> Tensor:
        del labels
        return self.m + self.a * x / sigma[:, None, None, None]


def nets(a: float, m: float = 0.0, w: float = 0.0, s: float = 0.5) -> Nets:
    """A generator of N(m, a^2), a teacher of N(0, s^2), and a discriminator by the mean of the pixels."""
    known = nets_of(Generator(a, m), exact(Gaussian(0.0, s))).modules
    return Nets({**known, EXTRACTOR: Maps(), DISCRIMINATOR: Mean(w)})


def test_the_hinge_loss_is_flat_beyond_the_margin():
    logits = torch.tensor([[-2.0], [-1.0], [0.0], [0.5], [1.0], [3.0]])
    assert hinge_real(logits).tolist() == [3.0, 2.0, 1.0, 0.5, 0.0, 0.0]
    assert hinge_fake(logits).tolist() == [0.0, 0.0, 1.0, 1.5, 2.0, 4.0]
    assert hinge_real(torch.tensor([[0.0, 2.0]])).tolist() == [0.5]  # the mean over the heads


def test_the_penalty_of_a_linear_head_is_the_square_of_its_weights():
    maps = [torch.randn(3, 1, 2, 2, generator=torch.Generator().manual_seed(1)).requires_grad_()]
    torch.testing.assert_close(gradient_penalty(Mean(3.0)(maps), maps), torch.full((3,), 4 * (3.0 / 4) ** 2))


def test_each_group_of_images_is_normalised_by_itself():
    norm, x = GroupedBatchNorm(3), 2 + 5 * torch.randn(2 * GROUP, 3, 4, 4, generator=torch.Generator().manual_seed(1))
    out = norm(x)
    variance, mean = torch.var_mean(out.unflatten(0, (2, GROUP)), (1, 3, 4), correction=0)
    torch.testing.assert_close(mean, torch.zeros(2, 3), rtol=0, atol=1e-5)
    torch.testing.assert_close(variance, torch.ones(2, 3), rtol=1e-4, atol=0)
    torch.testing.assert_close(norm(x[:GROUP]), out[:GROUP])
    with pytest.raises(ValueError, match="expected a multiple of 8 images, got 5"):
        norm(x[:5])


def test_heads_tell_equal_images_from_many():
    """Of one position, such as the mean of a map: whatever the image, its normalised features are 0."""
    torch.manual_seed(1)
    heads = Heads(map(GroupHead, [2, 3]))
    maps = [torch.randn(2 * GROUP, 2, 1, 1), torch.randn(2 * GROUP, 3, 1, 1)]
    with torch.no_grad():
        logits = heads(maps)
        one, other = (heads([values[i].expand_as(values) for values in maps]) for i in (0, 1))
    assert logits.shape == (2 * GROUP, 2)
    assert float(logits.std(0).min()) > 1e-2
    torch.testing.assert_close(one, torch.zeros_like(one), rtol=0, atol=1e-3)
    torch.testing.assert_close(other, torch.zeros_like(one), rtol=0, atol=1e-3)


@pytest.mark.parametrize(("a", "s"), [(1.0, 0.5), (0.3, 0.5)])
def test_the_pull_of_the_teacher_on_a_gaussian(a: float, s: float):
    """2 lambda c d E (x_g - A x_t) dx_g/da = 2 lambda c d a (1 - A), A = s^2 / (s^2 + t^2), for d pixels, here 2."""
    method, known, draws = make_method("add", NARROW, steps=1), nets(a, s=s), Draws(1, 0, 200_000)
    out = method.loss(known, data(Gaussian(0.0, s), draws, (1, 1, 2)), START, draws)
    found = float(torch.autograd.grad(out.loss.mean(), known.student.a)[0])
    A, c = s**2 / (s**2 + 0.25), 0.5 / 0.5**0.5
    assert found == pytest.approx(2 * 2.5 * c * 2 * a * (1 - A), rel=0.02)
    assert float(out.scalars["distillation"]) == pytest.approx(2 * c * ((1 - A) ** 2 * a**2 + A**2 * 0.25), rel=0.02)


def test_the_student_climbs_and_the_discriminator_parts():
    method, draws = make_method("add", DIFFUSION, steps=1, distillation=0.0), Draws(1, 0, 4000)
    known = nets(0.1, m=0.3, w=0.5)
    batch = data(Gaussian(-0.2, 0.1), draws)
    out = method.loss(known, batch, START, draws)
    assert float(torch.autograd.grad(out.loss.mean(), known.student.m)[0]) == pytest.approx(-0.5)
    # Real images at -0.2, generated ones at 0.3: with all logits within the margin the slope is 0.3 + 0.2.
    loss = method.loss_of(DISCRIMINATOR, known, batch, START, draws).loss
    slope, none = torch.autograd.grad(loss.mean(), [known[DISCRIMINATOR].w, known.student.m], allow_unused=True)
    assert float(slope) == pytest.approx(0.5, abs=0.01)
    assert none is None


def test_equal_distributions_give_the_discriminator_no_slope():
    method, draws = make_method("add", DIFFUSION, steps=1, r1=0.0), Draws(1, 0, 200_000)
    known = nets(0.1, m=0.2, w=0.3)
    loss = method.loss_of(DISCRIMINATOR, known, data(Gaussian(0.2, 0.1), draws), START, draws).loss
    assert float(torch.autograd.grad(loss.mean(), known[DISCRIMINATOR].w)[0]) == pytest.approx(0, abs=1e-3)
    assert float(loss.detach().mean()) == pytest.approx(2, abs=1e-3)


def test_the_student_sees_pure_noise_and_noisy_images():
    method, draws, seen = make_method("add"), Draws(1, 0, 4000), []

    def watching(x: Tensor, sigma: Tensor, labels: Labels = None) -> Tensor:
        del labels
        seen.append((x, sigma))
        return x

    known = Nets({STUDENT: watching})  # pyright: ignore[reportArgumentType]
    batch = Batch(torch.full((4000, 1, 2, 2), 1000.0), None)
    method.generated(known, batch, draws)
    x, sigma = seen[0]
    assert torch.equal(sigma.unique().flip(0), karras_grid(5, 0.002, 20.0)[:-1])
    pure = sigma == 20.0
    assert float(pure.double().mean()) == pytest.approx(0.25, abs=0.03)
    assert float(x[pure].mean()) == pytest.approx(0, abs=2)
    assert float(x[~pure].mean()) == pytest.approx(1000, abs=2)


def test_turns_and_rows():
    method = make_method("add")
    assert method.turns(START) == (DISCRIMINATOR, STUDENT)
    sampling = Sampling(diffusion=method.diffusion, steps=3, two_step=0.8)
    assert [row.nfe for row in method.samplers(sampling)] == [1, 2, 4]
    assert [row.nfe for row in make_method("add", steps=1).samplers(sampling)] == [1]
    assert method.scan(sampling, (0.5,)) == []


def test_the_extractor_never_changes():
    state = make_state(make_method("add"), noise=0.3)
    assert not any(parameter.requires_grad for parameter in state.nets[EXTRACTOR].parameters())
    assert not state.nets[EXTRACTOR].training
    draws = Draws(1, 0, 16)
    before = {key: value.clone() for key, value in state.nets[EXTRACTOR].state_dict().items()}
    for player in (DISCRIMINATOR, STUDENT):
        make_method("add").loss_of(player, state.nets, batches(draws), START, draws)
    assert all(torch.equal(value, before[key]) for key, value in state.nets[EXTRACTOR].state_dict().items())


LADD = {"features": "teacher", "distillation": 0.0, "steps": 1}


def teacher_nets(a: float, m: float, w: float, s: float) -> Nets:
    """A generator of N(m, a^2), a teacher of N(0, s^2), and a discriminator by the mean of the teacher's output F."""
    known = nets_of(Generator(a, m), exact(Gaussian(0.0, s))).modules
    return Nets({**known, DISCRIMINATOR: Mean(w)})


def test_the_student_is_pulled_through_the_teacher():
    """dF/dx = (A - c_skip) / c_out with A = s^2/(s^2 + t^2): the slope of the student's mean is -w times it."""
    s, t, w = 0.8, 0.5, 0.7
    method, draws = make_method("add", NARROW, **LADD), Draws(1, 0, 64)
    known, batch = teacher_nets(0.1, 0.3, w, s), data(Gaussian(0.0, s), Draws(1, 0, 64))
    out = method.loss(known, batch, START, draws)
    scalings = edm_scalings(torch.tensor([t], dtype=torch.float64), DIFFUSION.sigma_data)
    slope = (s**2 / (s**2 + t**2) - float(scalings.c_skip)) / float(scalings.c_out)
    assert abs(slope) > 0.3
    assert float(torch.autograd.grad(out.loss.mean(), known.student.m)[0]) == pytest.approx(-w * slope, rel=1e-3)
    assert set(out.scalars) == {"adversarial"}
    assert all(parameter.grad is None for parameter in known.teacher.parameters())


def test_real_and_generated_images_have_the_same_noise():
    """So equal images give no gap at all; and the levels are sigma_data exp(m + s z), within the range."""
    method, draws, oracle = make_method("add", DIFFUSION, **LADD), Draws(1, 0, 4000), Gaussian(0.0, 0.8)
    known, batch = teacher_nets(0.1, 0.3, 0.7, 0.8), data(oracle, draws)
    real, fake = method.maps(known, batch, draws, batch.x, batch.x)
    assert torch.equal(real[0], fake[0])
    (seen,), x = method.maps(known, batch, draws, batch.x), batch.x
    z = draws.normal(stream="feature_level", dtype=torch.float64)
    sigma = (0.5 * (1 + z).exp()).clamp(DIFFUSION.sigma_min, DIFFUSION.sigma_max)
    n = sigma[:, None, None, None] * draws.normal(x.shape[1:], stream="feature_noise")
    torch.testing.assert_close(seen, block_maps(known.teacher, x + n, sigma))
    # A logit-normal time of rectified flow, t = sigma / (sigma + sigma_data), has a median of 1 / (1 + 1 / e).
    assert float((sigma / (sigma + 0.5)).median()) == pytest.approx(1 / (1 + math.exp(-1)), abs=0.02)


def test_the_networks_are_a_teacher_and_heads_for_its_blocks():
    method = make_method("add", DIFFUSION, **LADD)
    assert set(method.networks) == {"teacher", DISCRIMINATOR}
    assert EXTRACTOR in make_method("add").networks
    state = make_state(method, hidden=24)
    teacher = state.nets.teacher
    maps = block_maps(teacher, batches(Draws(1, 0, GROUP)).x, torch.ones(GROUP, dtype=torch.float64))
    assert [values.shape for values in maps] == [(GROUP, 24, 1, 1)] * len(blocks(teacher.net))
    assert state.nets[DISCRIMINATOR](maps).shape == (GROUP, len(maps))
    assert not teacher.training
