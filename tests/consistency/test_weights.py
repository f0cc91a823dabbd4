"""Weights by noise level."""

import pytest
import torch

from cmcore.consistency.weights import AdaptiveWeight, edm, inverse_gap
from cmcore.diffusion.grids import karras_grid
from cmcore.diffusion.precond import edm_scalings


@pytest.mark.parametrize(("sigma", "weight"), [(0.002, 250004), (0.5, 8), (5.0, 4.04), (80.0, 4.00016)])
def test_edm_weight(sigma: float, weight: float):
    level = torch.tensor([sigma], dtype=torch.float64)
    assert edm(level, 0.5).item() == pytest.approx(weight, rel=6e-6)
    # The weight evens out c_out, by which the network's error is multiplied (arXiv 2206.00364, Eq. 8).
    assert (edm(level, 0.5) * edm_scalings(level, 0.5).c_out ** 2).item() == pytest.approx(1, rel=1e-12)


def test_inverse_gap_of_the_first_grid_of_ict():
    grid = karras_grid(11, 0.002, 80.0).flip(0)
    expected = [67.931, 14.627, 4.2882, 1.5453, 0.64524, 0.30087, 0.15284, 0.083148, 0.047835, 0.02883]
    torch.testing.assert_close(
        inverse_gap(grid[1:], grid[:-1]), torch.tensor(expected, dtype=torch.float64), rtol=6e-5, atol=0
    )


def test_the_adaptive_weight_starts_at_zero_and_learns_the_inverse_loss():
    torch.manual_seed(0)
    head = AdaptiveWeight()
    t = torch.linspace(0, torch.pi / 2, 64, dtype=torch.float64)
    assert torch.equal(head(t), torch.zeros(64))
    loss_of_t = 0.5 + torch.sin(3 * t).square().float()
    optimiser = torch.optim.Adam(head.parameters(), lr=0.05)
    for _ in range(400):
        optimiser.zero_grad()
        w = head(t)
        (w.exp() * loss_of_t - w).mean().backward()
        optimiser.step()
    # e^w L - w is least where e^w = 1/L.
    torch.testing.assert_close(head(t), -loss_of_t.log(), rtol=0, atol=0.05)
