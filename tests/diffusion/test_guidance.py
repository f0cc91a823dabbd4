"""Guidance on distributions whose guided velocity is known, and the labels that are dropped for it."""

import math

import pytest
import torch
from torch import Tensor

from cmcore.diffusion import ode
from cmcore.diffusion.guidance import Guided, at_scale, draw_scales, drop_labels, with_scale
from cmcore.diffusion.inputs import NO_LABEL, InputError
from cmcore.diffusion.precond import Condition, Labels, as_condition, with_inputs
from cmcore.oracles import Gaussian, GaussianMixture
from cmcore.rng import Draws

MEANS, STD = (0.8, -0.6), 0.5


def denoiser(x: Tensor, sigma: Tensor, labels: Labels = None) -> Tensor:
    """The exact one of two classes with normal pixels, and of both together where there is no label."""
    indices = as_condition(labels).labels
    assert indices is not None
    means = torch.tensor(MEANS, dtype=x.dtype)[:, None]
    both = GaussianMixture(torch.tensor([0.5, 0.5]), means, torch.tensor([STD, STD]))
    classes = [Gaussian(mean, STD).denoise(x, sigma) for mean in MEANS]
    known = torch.where((indices == 0)[:, None], *classes)
    return torch.where((indices == NO_LABEL)[:, None], both.denoise(x, sigma), known)


@pytest.fixture
def point() -> tuple[Tensor, Tensor, Tensor]:
    draw = torch.Generator().manual_seed(1)
    x = torch.randn(8, 1, generator=draw, dtype=torch.float64)
    return x, torch.linspace(0.1, 3, 8, dtype=torch.float64), torch.tensor([0, 1] * 4)


def test_a_scale_of_one_is_the_plain_model_and_zero_the_unconditional_one(point):
    x, sigma, labels = point
    assert torch.equal(Guided(denoiser, 1.0)(x, sigma, labels), denoiser(x, sigma, labels))
    assert torch.equal(Guided(denoiser, 0.0)(x, sigma, labels), denoiser(x, sigma, torch.full((8,), NO_LABEL)))


def test_it_is_linear_in_the_scale_and_every_image_has_its_own(point):
    x, sigma, labels = point
    at = {s: Guided(denoiser, s)(x, sigma, labels) for s in (0.0, 1.0, 1.7)}
    torch.testing.assert_close(at[1.7], at[0.0] + 1.7 * (at[1.0] - at[0.0]))
    assert (at[1.7] - at[1.0]).abs().max() > 0.05
    s = torch.tensor([0.0, 1.0, 1.7, 1.0, 0.0, 1.7, 1.7, 0.0])
    mixed = Guided(denoiser, s)(x, sigma, labels)
    torch.testing.assert_close(mixed, torch.stack([at[round(float(k), 1)][i] for i, k in enumerate(s)]))


def test_the_guided_velocity_follows_the_sharpened_density(point):
    """dx/dsigma = -sigma grad log p(x) (p(x | label)/p(x))^s: differentiated by PyTorch."""
    x, sigma, labels = point
    s = 1.6

    def log_p(x: Tensor, mean: Tensor) -> Tensor:
        return -((x[:, 0] - mean) ** 2) / (2 * (STD**2 + sigma**2))

    x = x.requires_grad_()
    classes = torch.stack([log_p(x, torch.tensor(mean)) for mean in MEANS])
    unlabelled = classes.logsumexp(0)
    sharpened = unlabelled + s * (classes.gather(0, labels[None])[0] - unlabelled)
    (score,) = torch.autograd.grad(sharpened.sum(), x)
    velocity = ode.velocity(Guided(denoiser, s), x.detach(), sigma, labels)
    torch.testing.assert_close(velocity, -sigma[:, None] * score)


@pytest.mark.parametrize("s", [0.0, 0.4, 1.0, 1.7, 3.0])
def test_guidance_away_from_a_class_is_the_exact_denoiser_of_a_moved_one(point, s: float):
    """D of a normal class is affine in its mean, so D_1 + s (D_0 - D_1) is that of the mean m_1 + s (m_0 - m_1)."""
    x, sigma, _ = point
    mean = MEANS[1] + s * (MEANS[0] - MEANS[1])
    found = Guided(denoiser, s, torch.tensor(1))(x, sigma, torch.zeros(8, dtype=torch.int64))
    torch.testing.assert_close(found, Gaussian(mean, STD).denoise(x, sigma))


def test_a_negative_label_counts_where_it_is_another(point):
    x, sigma, labels = point
    plain, no_label = denoiser(x, sigma, labels), Guided(denoiser, 1.7)(x, sigma, labels)
    assert torch.equal(Guided(denoiser, 1.0, torch.tensor(1))(x, sigma, labels), plain)
    assert torch.equal(Guided(denoiser, 1.7, torch.tensor(NO_LABEL))(x, sigma, labels), no_label)
    away = Guided(denoiser, 1.7, torch.tensor(1))(x, sigma, labels)
    assert torch.equal(away[1::2], plain[1::2])  # its own label is no other
    assert ((away - no_label)[::2].abs() > 1e-3).all()


def test_a_negative_caption_is_that_of_every_image():
    seen: list[Condition] = []
    told, negative = torch.tensor([[4, 5], [6, NO_LABEL]]), torch.tensor([7, 8])
    Guided(lambda x, level, labels: seen.append(as_condition(labels)) or x, 1.5, negative)(
        torch.zeros(2, 3), torch.ones(2), told
    )
    (one,) = seen
    assert one.labels is not None
    assert one.labels.tolist() == [[4, 5], [6, NO_LABEL], [7, 8], [7, 8]]


def test_all_images_with_and_without_labels_are_one_pass():
    seen: list[Condition] = []

    def model(x: Tensor, level: Tensor, labels: Labels) -> Tensor:
        seen.append(as_condition(labels))
        assert len(x) == len(level) == 4
        return x

    augment, more = torch.tensor([[1.0], [2.0]]), {"target": torch.tensor([0.3, 0.6])}
    Guided(model, 1.5)(torch.zeros(2, 3), torch.ones(2), Condition(torch.tensor([4, 5]), augment, more))
    (one,) = seen
    assert one.labels is not None
    assert one.augment is not None
    assert one.labels.tolist() == [4, 5, NO_LABEL, NO_LABEL]
    assert one.augment[:, 0].tolist() == [1.0, 2.0, 1.0, 2.0]
    assert torch.equal(one.inputs["target"], torch.tensor([0.3, 0.6, 0.3, 0.6]))
    with pytest.raises(InputError, match="labels: expected class indices, which guidance needs, got None"):
        Guided(model, 1.5)(torch.zeros(2, 3), torch.ones(2), None)


def test_labels_are_dropped_at_their_rate_by_address():
    count, rate, labels = 20_000, 0.1, torch.arange(20_000) % 10
    dropped = as_condition(drop_labels(labels, rate, Draws(3, 640, count))).labels
    assert dropped is not None
    gone = dropped == NO_LABEL
    assert abs(float(gone.float().mean()) - rate) < 5 * math.sqrt(rate * (1 - rate) / count)
    assert torch.equal(dropped[~gone], labels[~gone])
    rows = slice(5000, 5600)
    share = as_condition(drop_labels(labels[rows], rate, Draws(3, 640, count, rows))).labels
    later = as_condition(drop_labels(labels, rate, Draws(3, 641, count))).labels
    assert share is not None
    assert later is not None
    assert torch.equal(share, dropped[rows])
    assert not torch.equal(later, dropped)
    assert bool((as_condition(drop_labels(labels, 1.0, Draws(3, 640, count))).labels == NO_LABEL).all())


def test_nothing_is_drawn_where_nothing_is_dropped(monkeypatch: pytest.MonkeyPatch):
    labels, draws = torch.tensor([1, 2]), Draws(0, 0, 2)
    monkeypatch.setattr(draws, "uniform", None)
    assert drop_labels(labels, 0.0, draws) is labels
    assert drop_labels(None, 0.5, draws) is None


def test_a_dropped_label_keeps_the_other_inputs():
    augment, more = torch.ones(2, 9), {"target": torch.ones(2)}
    one = drop_labels(Condition(torch.tensor([1, 2]), augment, more), 1.0, Draws(0, 0, 2))
    assert isinstance(one, Condition)
    assert one.augment is augment
    assert one.inputs is more


def test_scales_are_uniform_in_their_range():
    s = draw_scales((1.0, 2.0), Draws(0, 0, 20_000))
    assert s.dtype == torch.float64
    assert (float(s.min()) >= 1, float(s.max()) <= 2) == (True, True)
    assert abs(float(s.mean()) - 1.5) < 5 / math.sqrt(12 * 20_000)
    assert abs(float(s.var()) - 1 / 12) < 5e-3


def test_a_scale_is_an_input_beside_the_others():
    before = with_inputs(Condition(torch.tensor([1, 2]), torch.ones(2, 9)), target=torch.ones(2))
    after = with_scale(before, torch.tensor([1.5, 2.0]))
    assert after[:2] == before[:2]
    assert {name: value.tolist() for name, value in after.inputs.items()} == {"target": [1, 1], "guidance": [1.5, 2.0]}
    assert "guidance" not in before.inputs
    seen: list[Labels] = []
    at_scale(lambda x, level, labels: seen.append(labels) or x, 1.4)(torch.zeros(2, 3), torch.ones(2), before)
    torch.testing.assert_close(as_condition(seen[0]).inputs["guidance"], torch.tensor([1.4, 1.4]))
