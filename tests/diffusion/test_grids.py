"""The Karras grid against printed values."""

import pytest
import torch

from cmcore.diffusion.grids import karras_grid, with_zero

# EDM's 18 levels, rounded to five significant digits.
EDM_18 = [
    80.0,
    57.586,
    40.786,
    28.375,
    19.352,
    12.910,
    8.4009,
    5.3152,
    3.2568,
    1.9233,
    1.0882,
    0.58535,
    0.29644,
    0.13952,
]
EDM_18 += [0.059947, 0.022935, 0.007528, 0.002]


def test_the_18_levels_of_edm():
    grid = karras_grid(18, 0.002, 80.0)
    assert grid.dtype == torch.float64
    torch.testing.assert_close(grid, torch.tensor(EDM_18, dtype=torch.float64), rtol=5e-5, atol=0)


@pytest.mark.parametrize(
    ("n", "index", "sigma"), [(40, 22, 1.3824), (40, 17, 4.3656), (201, 106, 1.9128), (151, 67, 3.9912)]
)
def test_two_step_indices_of_the_consistency_models(n: int, index: int, sigma: float):
    assert karras_grid(n, 0.002, 80.0)[index].item() == pytest.approx(sigma, abs=5e-5)


def test_two_step_levels_of_ict_are_points_of_its_finest_grid():
    ascending = karras_grid(1281, 0.002, 80.0).flip(0)
    assert ascending[492].item() == pytest.approx(0.82087, abs=5e-6)
    assert ascending[571].item() == pytest.approx(1.52577, abs=5e-6)


@pytest.mark.parametrize("sigma_max", [20.0, 80.0])
@pytest.mark.parametrize("rho", [1.0, 3.0, 7.0])
@pytest.mark.parametrize("n", [2, 3, 1281])
def test_ends_are_exact_and_levels_descend(n: int, rho: float, sigma_max: float):
    grid = karras_grid(n, 0.002, sigma_max, rho)
    assert grid.shape == (n,)
    assert grid[0].item() == sigma_max
    assert grid[-1].item() == 0.002
    assert (grid.diff() < 0).all()


def test_levels_are_equidistant_after_the_warp():
    gaps = (karras_grid(40, 0.002, 80.0, 5.0) ** (1 / 5.0)).diff()
    torch.testing.assert_close(gaps, gaps[:1].expand_as(gaps), rtol=1e-11, atol=0)


def test_with_zero_appends_one_zero():
    grid = karras_grid(5, 0.1, 1.0)
    assert with_zero(grid).tolist() == [*grid.tolist(), 0.0]


@pytest.mark.parametrize(
    "arguments", [(1, 0.002, 80.0), (5, 0.0, 80.0), (5, 2.0, 1.0), (5, 0.1, 1.0, 0.0), (5, 0.1, float("inf"))]
)
def test_impossible_grids_are_refused(arguments: tuple[float, ...]):
    with pytest.raises(ValueError, match="expected"):
        karras_grid(*arguments)
