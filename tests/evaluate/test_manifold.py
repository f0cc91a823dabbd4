"""Precision and recall on sets made so that the answer is known."""

import pytest
import torch

from cmcore.evaluate import manifold
from cmcore.evaluate.manifold import covered, neighbour_radii, precision_recall


def cluster(centre: float, count: int, seed: int) -> torch.Tensor:
    return centre + torch.rand((count, 4), generator=torch.Generator().manual_seed(seed))


def test_radii_on_a_line():
    x = torch.tensor([[0.0], [1.0], [3.0], [7.0]])
    assert neighbour_radii(x, 1).tolist() == [1, 1, 2, 4]
    assert neighbour_radii(x, 2).tolist() == [3, 2, 3, 6]


def test_coverage_includes_the_boundary():
    centres, radii = torch.tensor([[0.0], [10.0]]), torch.tensor([2.0, 1.0])
    assert covered(torch.tensor([[2.0], [2.001], [9.0], [-2.0]]), centres, radii).tolist() == [True, False, True, True]


def test_equal_sets_cover_each_other():
    x = cluster(0, 60, 0)
    result = precision_recall(x, x)
    assert (result.precision.value, result.recall.value) == (1.0, 1.0)


def test_far_sets_do_not_meet():
    result = precision_recall(cluster(0, 60, 0), cluster(100, 60, 1))
    assert (result.precision.value, result.recall.value) == (0.0, 0.0)


def test_mode_dropping_costs_recall_and_a_spurious_mode_costs_precision():
    """Half of the real modes produced: precision 1, recall 1/2. A quarter of the fakes elsewhere: precision 3/4."""
    one, two = cluster(0, 60, 0), cluster(50, 60, 1)
    dropped = precision_recall(torch.cat([one, two]), one)
    assert (dropped.precision.value, dropped.recall.value) == (1.0, 0.5)
    spurious = precision_recall(one, torch.cat([one, cluster(-50, 20, 2)]))
    assert (spurious.precision.value, spurious.recall.value) == (0.75, 1.0)
    assert spurious.precision.spread == pytest.approx((0.75 * 0.25 / 80) ** 0.5)


def test_chunks_do_not_change_the_result(monkeypatch):
    real, fake = cluster(0, 70, 0), cluster(0.3, 50, 1)
    whole = precision_recall(real, fake)
    monkeypatch.setattr(manifold, "_ROWS", 7)
    for columns in (10_000, 9, 2):
        monkeypatch.setattr(manifold, "_COLUMNS", columns)
        assert precision_recall(real, fake) == whole
    assert precision_recall(real, fake, real_radii=neighbour_radii(real, 3)) == whole
    assert 0 < whole.precision.value < 1


def test_too_many_neighbours_are_refused():
    with pytest.raises(ValueError, match=r"eval\.neighbours: expected 1 to 4"):
        neighbour_radii(torch.zeros(5, 2), 5)
