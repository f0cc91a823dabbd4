"""The kernel distance: closed forms and unbiasedness."""

import itertools

import pytest
import torch

from cmcore.evaluate.kernel import kid, mmd2, polynomial_kernel


def test_kernel_by_hand():
    x, y = torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0, 4.0], [0.0, 0.0]])
    assert torch.equal(polynomial_kernel(x, y), torch.tensor([[(11 / 2 + 1) ** 3, 1.0]]))


def test_small_case_by_hand():
    """x = {0, 0}, y = {a, -a} in one dimension: 1 + (1 - a^2)^3 - 2."""
    a = 0.7
    x, y = torch.zeros((2, 1), dtype=torch.float64), torch.tensor([[a], [-a]], dtype=torch.float64)
    assert mmd2(x, y) == pytest.approx((1 - a**2) ** 3 - 1, rel=1e-12)


def test_expectation_over_every_draw_is_the_population_value():
    """All pairs of two-point samples of two uniform distributions: the mean is exactly the squared MMD."""
    P, Q = torch.tensor([0.0, 1.0, 2.0]).double(), torch.tensor([0.0, 1.0, 3.0]).double()
    pairs = list(itertools.product(range(3), repeat=2))
    for X, Y in ((P, Q), (P, P)):
        column_x, column_y = X.unsqueeze(1), Y.unsqueeze(1)
        kernel = polynomial_kernel
        population = kernel(column_x, column_x).mean() + kernel(column_y, column_y).mean()
        population -= 2 * kernel(column_x, column_y).mean()
        estimates = [mmd2(column_x[list(i)], column_y[list(j)]) for i in pairs for j in pairs]
        assert sum(estimates) / len(estimates) == pytest.approx(population.item(), abs=1e-10)
    assert population.item() == pytest.approx(0, abs=1e-10)


def test_subsets_of_equal_distributions_scatter_around_zero():
    x, y = torch.randn((2, 4000, 8), generator=torch.Generator().manual_seed(0)).unbind()
    measured = kid(x, y, subsets=100, size=200, seed=0)
    assert abs(measured.value) < 4 * measured.spread / 100**0.5
    assert kid(x, y + 0.3, subsets=10, size=200, seed=0).value > 10 * abs(measured.value)


def test_whole_sets_as_one_subset():
    x, y = torch.randn((2, 50, 3), generator=torch.Generator().manual_seed(1)).double().unbind()
    assert kid(x, y, subsets=1, size=50, seed=3).value == pytest.approx(mmd2(x, y), rel=1e-10)


def test_subset_larger_than_the_smaller_set_is_refused():
    with pytest.raises(ValueError, match=r"eval\.kid_size: expected 2 to 20 .*, got 30"):
        kid(torch.zeros(40, 2), torch.zeros(20, 2), subsets=1, size=30, seed=0)
