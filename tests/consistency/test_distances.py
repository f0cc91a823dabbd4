"""Distances against numbers worked out by hand."""

import pytest
import torch

from cmcore.consistency import distances
from cmcore.consistency.distances import distance, huber, huber_constant, l1, l2, pseudo_huber


def images() -> tuple[torch.Tensor, torch.Tensor]:
    a = torch.tensor([[[[3.0, 0.0], [0.0, 4.0]]], [[[1.0, 1.0], [1.0, 1.0]]]], dtype=torch.float64)
    return a, torch.zeros_like(a)


def test_l1_and_l2_are_means_over_the_pixels():
    a, b = images()
    assert l1(a, b).tolist() == [7 / 4, 1]
    assert l2(a, b).tolist() == [25 / 4, 1]


def test_pseudo_huber_takes_the_norm_of_the_whole_image():
    a, b = images()
    # ||a|| = 5 and 2: sqrt(25 + 144) - 12 = 1. Per element, with the same c, the first would be about 1.03.
    assert pseudo_huber(a, b, 12.0)[0].item() == pytest.approx(1.0, rel=1e-12)
    assert pseudo_huber(a, b, 1.5)[1].item() == pytest.approx(1.0, rel=1e-12)
    assert pseudo_huber(a, a, 0.03).tolist() == [0, 0]


def test_huber_is_a_mean_over_the_pixels():
    a, b = images()
    # Per element sqrt(9 + 16) - 4 = 1, sqrt(16 + 16) - 4 and twice none; with c = 0 it is l1.
    assert huber(a, b, 4.0)[0].item() == pytest.approx((1 + 32**0.5 - 4) / 4, rel=1e-12)
    assert torch.equal(huber(a, b, 0.0), l1(a, b))


def test_pseudo_huber_is_the_norm_far_out_and_quadratic_near():
    a, b = images()
    assert pseudo_huber(1e6 * a, b, 0.03)[0].item() == pytest.approx(5e6, rel=1e-7)
    near = pseudo_huber(1e-4 * a, b, 1.0)[0].item()
    assert near == pytest.approx(25e-8 / 2, rel=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_pseudo_huber_has_a_finite_gradient_where_both_sides_are_equal(dtype: torch.dtype):
    a = torch.ones(2, 1, 2, 2, dtype=dtype, requires_grad=True)
    pseudo_huber(a, torch.ones_like(a), 1e-8).sum().backward()
    assert a.grad is not None
    assert a.grad.abs().max() == 0


@pytest.mark.parametrize(
    ("dimension", "c"), [(3 * 32**2, 0.02993), (3 * 64**2, 0.05986), (3 * 256**2, 0.23944)], ids=["32", "64", "256"]
)
def test_huber_constant(dimension: int, c: float):
    assert huber_constant(dimension) == pytest.approx(c, abs=5e-6)


def test_a_name_gives_its_distance():
    a, b = images()
    assert torch.equal(distance("l1", 0.1)(a, b), l1(a, b))
    assert torch.equal(distance("l2", 0.1)(a, b), l2(a, b))
    assert torch.equal(distance("huber", 0.1)(a, b), huber(a, b, 0.1))
    assert torch.equal(distance("pseudo_huber", 0.1)(a, b), pseudo_huber(a, b, 0.1))


def test_lpips_says_what_it_needs_until_it_is_provided(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(distances, "_provided", {})
    with pytest.raises(ValueError, match=r"lpips needs its weights .* or choose pseudo_huber, l2 or l1"):
        distance("lpips", 0.1)
    distances.provide("lpips", l1)
    assert distance("lpips", 0.1) is l1
