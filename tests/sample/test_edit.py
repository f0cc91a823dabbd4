"""Editing: what is known stays, what is free is sampled, and the linear maps are those of the paper."""

import math

import pytest
import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d

from cmcore.diffusion.grids import karras_grid
from cmcore.oracles import Gaussian, as_consistency
from cmcore.rng import NoiseSource
from cmcore.sample import edit
from cmcore.sample.fewstep import Multistep
from cmcore.sample.known import LUMA, Known, known_grey, known_means, known_pixels, orthogonal_basis

EPSILON = 0.002
ORACLE = Gaussian(mean=0.1, std=0.3)
MODEL = as_consistency(ORACLE, EPSILON)
SAMPLER = Multistep(tuple(karras_grid(6, EPSILON, 80.0)[:-1].tolist()), EPSILON, clamp=True)


def images(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 2 - 1


def source(count: int, seed: int = 1) -> NoiseSource:
    return NoiseSource(seed, range(count))


def luma(x: Tensor) -> Tensor:
    return torch.einsum("bchw,c->bhw", x, torch.tensor(LUMA, dtype=x.dtype))[:, None]


def test_inpainting_keeps_known_pixels_bit_for_bit_and_changes_the_others():
    x, missing = images(3, 3, 6, 6), torch.zeros(1, 1, 6, 6, dtype=torch.bool)
    missing[..., 2:5, 1:4] = True
    filled = edit.inpaint(SAMPLER, MODEL, x, missing, source(3))
    known = ~missing.expand_as(x)
    assert torch.equal(filled[known], x[known])
    assert (filled[~known] != x[~known]).all()


def test_inpainting_sees_nothing_of_the_missing_pixels():
    x, missing = images(2, 1, 4, 4), images(2, 1, 4, 4, seed=3) > 0
    hidden = torch.where(missing, torch.full_like(x, 0.77), x)
    a, b = (edit.inpaint(SAMPLER, MODEL, y, missing, source(2)) for y in (x, hidden))
    assert torch.equal(a, b)


def test_inpainting_samples_missing_pixels_from_the_data():
    """Independent pixels: what is missing must come out N(0.1, 0.3^2). 32k scalars, four standard errors."""
    missing = torch.zeros(1, 1, 32, 32, dtype=torch.bool)
    missing[..., :16] = True
    sampler = Multistep((80.0, 2.0, 0.5), EPSILON)
    filled = edit.inpaint(sampler, MODEL, images(64, 1, 32, 32), missing, source(64))[..., :16]
    error = 0.3 / math.sqrt(filled.numel())
    assert filled.mean().item() == pytest.approx(0.1, abs=4 * error)
    assert filled.std().item() == pytest.approx(0.3, abs=4 * error / 2**0.5)


def test_colourisation_keeps_the_grey_channel():
    grey = luma(images(3, 3, 5, 5))
    colour = edit.colourise(SAMPLER, MODEL, grey, source(3))
    assert colour.shape == (3, 3, 5, 5)
    torch.testing.assert_close(luma(colour), grey, rtol=0, atol=1e-12)
    assert colour.var(dim=1).min() > 0, "the channels differ: there is colour"


@pytest.mark.parametrize("factor", [2, 4])
def test_super_resolution_keeps_the_mean_pooled_image(factor: int):
    low = images(3, 2, 2, 3)
    high = edit.super_resolve(SAMPLER, MODEL, low, factor, source(3))
    assert high.shape == (3, 2, 2 * factor, 3 * factor)
    torch.testing.assert_close(avg_pool2d(high, factor), low, rtol=0, atol=1e-12)
    assert (high - low.repeat_interleave(factor, 2).repeat_interleave(factor, 3)).abs().max() > 0.1


@pytest.mark.parametrize(
    "known",
    [
        known_pixels(images(2, 3, 4, 4), images(2, 3, 4, 4) > 0),
        known_grey(images(2, 1, 4, 4)),
        known_means(images(2, 3, 2, 2), 2),
    ],
    ids=["pixels", "grey", "means"],
)
def test_the_map_is_an_isometry_and_the_projection_is_idempotent_and_nearest(known: Known):
    x = images(2, 3, 4, 4, seed=7)
    coefficients = known.forward(x)
    torch.testing.assert_close(known.inverse(coefficients), x)
    torch.testing.assert_close(coefficients.norm(), x.norm())
    projected = known.project(x)
    torch.testing.assert_close(known.project(projected), projected)
    # Nearest: moving on within the constraint is orthogonal to the way there.
    other = known.project(images(2, 3, 4, 4, seed=8))
    assert ((x - projected) * (other - projected)).sum().item() == pytest.approx(0, abs=1e-10)


def test_basis_is_orthogonal_and_starts_with_the_given_direction():
    for first in (torch.tensor(LUMA, dtype=torch.float64), torch.ones(64, dtype=torch.float64), images(9)):
        Q = orthogonal_basis(first)
        torch.testing.assert_close(Q.T @ Q, torch.eye(len(first), dtype=torch.float64), rtol=0, atol=1e-14)
        torch.testing.assert_close(Q[:, 0], first / first.norm())


def test_colour_basis_is_the_paper_s_up_to_the_sign_of_its_free_columns():
    paper = [[0.4471, -0.8204, 0.3563], [0.8780, 0.4785, 0.0], [0.1705, -0.3129, -0.9343]]
    Q = orthogonal_basis(torch.tensor(LUMA, dtype=torch.float64))
    expected = torch.tensor(paper, dtype=torch.float64)
    expected = expected * (Q * expected).sum(0).sign()
    torch.testing.assert_close(Q, expected, rtol=0, atol=1e-4)


def test_strokes_start_from_the_painting():
    painting, levels = images(2, 3, 4, 4), (5.38, 2.24)
    got = edit.stroke(Multistep(levels, EPSILON), MODEL, painting, source(2))
    replay = source(2)
    x = painting + levels[0] * replay.normal((3, 4, 4))
    x = MODEL(x, torch.full((2,), levels[0], dtype=torch.float64), None)
    x = x + math.sqrt(levels[1] ** 2 - EPSILON**2) * replay.normal((3, 4, 4))
    torch.testing.assert_close(got, MODEL(x, torch.full((2,), levels[1], dtype=torch.float64), None))


def test_denoising_is_one_evaluation_at_the_given_level():
    x = images(2, 3, 4, 4)
    expected = ORACLE.consistency(x, torch.full((2,), 0.7, dtype=torch.float64), EPSILON)
    assert torch.equal(edit.denoise(MODEL, x, 0.7), expected)


def test_interpolation_goes_along_the_great_circle():
    a, b = NoiseSource(1, [0, 1]).normal((3, 8, 8))
    ends = edit.interpolate(MODEL, a, b, torch.tensor([0.0, 1.0]), 80.0)
    torch.testing.assert_close(ends, edit.denoise(MODEL, 80 * torch.stack([a, b]), 80.0))
    unit_a, unit_b = a / a.norm(), b / b.norm()
    angle = torch.arccos((unit_a * unit_b).sum())
    for fraction in (0.25, 0.5, 0.9):
        blend = edit.slerp(unit_a, unit_b, fraction)
        assert blend.norm().item() == pytest.approx(1, abs=1e-12)
        assert torch.arccos((unit_a * blend).sum()).item() == pytest.approx(fraction * angle.item(), abs=1e-9)
    torch.testing.assert_close(edit.slerp(a, a, 0.3), a)


def test_wrong_inputs_are_refused():
    with pytest.raises(ValueError, match="bool mask"):
        known_pixels(images(1, 1, 2, 2), torch.ones(1, 1, 2, 2))
    with pytest.raises(ValueError, match="one channel"):
        known_grey(images(1, 3, 2, 2))
