"""EDM's augmentation pipeline: what mathematics says of it, and numbers of the public implementation."""

import math

import pytest
import torch

from cmcore.data.augment import Distortion, augment, distort, draw
from cmcore.data.settings import AUGMENT_DIM
from cmcore.data.warp import CENTRE, LOW_PASS, warp
from cmcore.rng import Draws


def distortion(count: int = 1, **fields: float) -> Distortion:
    still = {name: torch.zeros(count, dtype=torch.float64) for name in Distortion._fields}
    still["translation"] = torch.zeros(count, 2, dtype=torch.float64)
    return Distortion(**still | {name: still[name] + torch.tensor(value) for name, value in fields.items()})


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def hill(x0: float = 0.0, y0: float = 0.0) -> torch.Tensor:
    """A round hill at (x0, y0) from the centre of 64x64 black pixels."""
    y, x = torch.meshgrid(*(torch.arange(64) - 31.5,) * 2, indexing="ij")
    return torch.exp(-((x - x0) ** 2 + (y - y0) ** 2) / 40)[None, None]


def test_the_filter_is_an_orthogonal_wavelet_with_six_vanishing_moments():
    h = torch.tensor(LOW_PASS, dtype=torch.float64)
    for shift in range(6):
        assert (h[: len(h) - 2 * shift] @ h[2 * shift :]).item() == pytest.approx(float(shift == 0), abs=1e-11)
    k = torch.arange(len(h), dtype=torch.float64)
    for moment in range(6):
        assert ((-1) ** k * (k - CENTRE) ** moment @ h).item() == pytest.approx(0, abs=1e-7)
    assert (k @ h / h.sum()).item() == pytest.approx(CENTRE, abs=0.1)


@pytest.mark.parametrize("size", [(8, 8), (5, 8), (4, 16)])
def test_the_identity_map_changes_nothing(size):
    x = noise(3, 2, *size).double()
    matrix, shift = torch.eye(2, dtype=torch.float64).expand(3, 2, 2), torch.zeros(3, 2, dtype=torch.float64)
    torch.testing.assert_close(warp(x, matrix, shift), x, rtol=0, atol=1e-11)


def test_at_probability_zero_images_are_mirrored_or_not():
    x, draws = noise(64, 3, 8, 8), Draws(1, 0, 64)
    y, labels = augment(x, draws, 0.0)
    flipped = labels[:, 0].bool()
    assert 16 < flipped.sum() < 48
    assert torch.equal(y, torch.where(flipped[:, None, None, None], x.flip(-1), x))
    assert not labels[:, 1:].any()


def test_mirrors_are_exact():
    x = noise(2, 3, 6, 6)
    assert torch.equal(distort(x, distortion(2, x_flip=1)), x.flip(-1))
    assert torch.equal(distort(x, distortion(2, y_flip=1)), x.flip(-2))


def test_whole_pixels_are_moved_exactly_with_reflection_at_the_edges():
    x = noise(1, 2, 16, 16)
    y = distort(x, distortion(translation=[1.5, -0.5]))  # 3 pixels to the right, 1 up
    torch.testing.assert_close(y[..., :-1, 3:], x[..., 1:, :-3], rtol=0, atol=1e-6)
    torch.testing.assert_close(y[..., :-1, :3], x[..., 1:, 1:4].flip(-1), rtol=0, atol=1e-6)
    torch.testing.assert_close(y[..., -1:, 3:], x[..., -2:-1, :-3], rtol=0, atol=1e-6)


def test_beyond_one_reflection_all_is_black():
    y = distort(torch.ones(1, 1, 8, 8), distortion(translation=[10.0, 0.0]))  # 10 pixels
    assert y[..., 4:].mean() == pytest.approx(1, abs=0.05)
    assert y[..., :1].abs().max() < 0.05


@pytest.mark.parametrize("quarters", [1, 2, 3])
def test_quarter_turns(quarters):
    """The filter is only nearly symmetric, so they are only nearly exact: by a tenth of a pixel."""
    x = hill(4, 8)
    y = distort(x, distortion(angle=quarters * math.pi / 2))
    torch.testing.assert_close(y, x.rot90(quarters, (2, 3)), rtol=0, atol=0.02)
    assert (x - x.rot90(quarters, (2, 3))).abs().max() > 0.5


@pytest.mark.parametrize("factor", [0.75, 1.5])
def test_scale_and_anisotropy_change_sizes_by_their_factors(factor):
    """Moments of the picture about its centre of mass."""
    amount = math.log2(factor) / 0.2
    x = hill()
    grid = torch.arange(64.0)

    def spread(image: torch.Tensor) -> torch.Tensor:
        mass = (image[0, 0] - 0.01).clamp(min=0)  # the filter leaves ripples far away
        mass = mass / mass.sum()
        along = [mass.sum(0), mass.sum(1)]
        return torch.stack([(((grid - m @ grid) ** 2) @ m).sqrt() for m in along])

    before = spread(x)
    both = spread(distort(x, distortion(scale=amount))) / before
    torch.testing.assert_close(both, torch.full((2,), factor), rtol=0.01, atol=0)
    wide = spread(distort(x, distortion(anisotropy=amount))) / before
    torch.testing.assert_close(wide, torch.tensor([factor, 1 / factor]), rtol=0.01, atol=0)
    tall = spread(distort(x, distortion(anisotropy=amount, axis=math.pi / 2))) / before
    torch.testing.assert_close(tall, torch.tensor([1 / factor, factor]), rtol=0.01, atol=0)


def test_the_matrix_undoes_scale_then_turn_then_stretch():
    d = distortion(scale=0.7, angle=1.0, anisotropy=-0.4, axis=0.3)

    def turn(angle: float) -> torch.Tensor:
        return torch.tensor([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]]).double()

    stretch = turn(0.3) @ torch.diag(torch.tensor([2**-0.08, 2**0.08]).double()) @ turn(-0.3)
    forward = stretch @ turn(1.0) * 2**0.14
    torch.testing.assert_close(forward @ d.matrix[0], torch.eye(2).double(), rtol=0, atol=1e-7)


# (x flip, y flip, scale, angle, anisotropy, axis, translation): labels, and pixels (0, 0), (2, 7), (5, 4), (9, 9) of
# the result for the 10x10 image sin(0.7 i + 0.3 j + 0.05 i j), from NVlabs/edm's augmentation in float64.
PUBLIC = {
    (1, 1, 0.75, 2.0, -0.5, 1.1, 0.25, -0.5): (
        [1.0, 1.0, 0.75, -1.416147, 0.909297, -0.226798, -0.445604, 0.25, -0.5],
        [-0.96148, 0.314271, 0.652926, -0.228644],
    ),
    (0, 0, -1.5, -0.4, 1.25, 0.0, 0.0, 0.0): (
        [0.0, 0.0, -1.5, -0.078939, -0.389418, 1.25, 0.0, 0.0, 0.0],
        [0.777618, 0.931309, -0.136293, -0.907063],
    ),
    (1, 0, 0.5, 0.0, 1.0, -2.0, 0.5, 1.0): (
        [1.0, 0.0, 0.5, 0.0, 0.0, -0.416147, -0.909297, 0.5, 1.0],
        [-0.126955, 0.865921, -0.730525, -0.7327],
    ),
    (0, 1, 0, 3.0, 0.0, 0.0, -1.0, 0.5): (
        [0.0, 1.0, 0.0, -1.989992, 0.14112, 0.0, 0.0, -1.0, 0.5],
        [0.391031, 0.755938, -0.945832, 0.274149],
    ),
}


@pytest.mark.parametrize("case", PUBLIC)
def test_numbers_of_the_public_implementation(case):
    *fields, x_shift, y_shift = case
    names = [name for name in Distortion._fields if name != "translation"]
    d = distortion(**dict(zip(names, map(float, fields), strict=True)), translation=[x_shift, y_shift])
    i, j = torch.meshgrid(*(torch.arange(10, dtype=torch.float64),) * 2, indexing="ij")
    y = distort(torch.sin(0.7 * i + 0.3 * j + 0.05 * i * j)[None, None], d)
    labels, pixels = PUBLIC[case]
    torch.testing.assert_close(d.labels[0], torch.tensor(labels), rtol=0, atol=2e-6)
    got = [y[0, 0, row, column].item() for row, column in ((0, 0), (2, 7), (5, 4), (9, 9))]
    assert got == pytest.approx(pixels, abs=1e-5)


def test_the_distortions_have_the_probabilities_of_the_recipe():
    count, p = 20_000, 0.12
    d = draw(Draws(3, 0, count), p)
    error = 4 * math.sqrt(0.25 / count)
    assert d.x_flip.mean().item() == pytest.approx(0.5, abs=error)
    assert d.y_flip.mean().item() == pytest.approx(p / 2, abs=error)
    for amount in (d.scale, d.angle, d.anisotropy, d.translation[:, 0], d.translation[:, 1]):
        chosen = amount != 0
        assert chosen.double().mean().item() == pytest.approx(p, abs=error)
    assert torch.equal(d.translation[:, 0] != 0, d.translation[:, 1] != 0)
    assert (d.axis != 0).double().mean().item() == pytest.approx(0.5, abs=error)
    assert d.scale[d.scale != 0].std().item() == pytest.approx(1, abs=0.07)
    assert d.angle.abs().max().item() == pytest.approx(math.pi, abs=0.02)
    for one, other in ((d.scale, d.angle), (d.scale, d.anisotropy), (d.anisotropy, d.translation[:, 0])):
        both = ((one != 0) & (other != 0)).double().mean().item()
        assert both == pytest.approx(p * p, abs=4 * math.sqrt(p * p / count))  # independent of one another


def test_a_step_is_repeatable_and_independent_of_how_it_is_cut():
    x, whole = noise(40, 3, 8, 8), Draws(1, 320, 40)
    y, labels = augment(x, whole, 0.5)
    assert labels.shape == (40, AUGMENT_DIM)
    assert labels.dtype == torch.float32
    again, _ = augment(x, whole, 0.5)
    assert torch.equal(y, again)
    for rows in (slice(0, 7), slice(7, 8), slice(8, 40)):
        part, told = augment(x[rows], Draws(1, 320, 40, rows), 0.5)
        torch.testing.assert_close(part, y[rows], rtol=0, atol=1e-6)
        assert torch.equal(told, labels[rows])
    assert not torch.equal(augment(x, Draws(1, 360, 40), 0.5)[1], labels)


def test_memory_is_bounded_by_working_in_parts(monkeypatch):
    x, d = noise(6, 2, 8, 8), distortion(6, angle=0.5)
    whole = distort(x, d)
    monkeypatch.setattr("cmcore.data.warp.MEMORY", 60_000)
    torch.testing.assert_close(distort(x, d), whole, rtol=0, atol=1e-6)


def test_autocast_does_not_touch_it():
    x, d = noise(4, 3, 8, 8), distortion(4, angle=0.5, scale=-0.3)
    with torch.autocast("cpu", torch.bfloat16):
        inside = distort(x, d)
    assert torch.equal(inside, distort(x, d))
