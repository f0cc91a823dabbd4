"""Measures by nearest neighbours on sets made so that the answer is known."""

import pytest
import torch

from cmcore.evaluate import manifold as module
from cmcore.evaluate.manifold import covered, manifold, neighbour_distances, neighbour_radii


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
    result = manifold(x, x)
    assert (result.precision.value, result.recall.value) == (1.0, 1.0)


def test_far_sets_do_not_meet():
    result = manifold(cluster(0, 60, 0), cluster(100, 60, 1))
    assert (result.precision.value, result.recall.value) == (0.0, 0.0)


def test_mode_dropping_costs_recall_and_a_spurious_mode_costs_precision():
    """Half of the real modes produced: precision 1, recall 1/2. A quarter of the fakes elsewhere: precision 3/4."""
    one, two = cluster(0, 60, 0), cluster(50, 60, 1)
    dropped = manifold(torch.cat([one, two]), one)
    assert (dropped.precision.value, dropped.recall.value) == (1.0, 0.5)
    spurious = manifold(one, torch.cat([one, cluster(-50, 20, 2)]))
    assert (spurious.precision.value, spurious.recall.value) == (0.75, 1.0)
    assert spurious.precision.spread == pytest.approx((0.75 * 0.25 / 80) ** 0.5)


def test_chunks_do_not_change_the_result(monkeypatch):
    real, fake = cluster(0, 70, 0), cluster(0.3, 50, 1)
    whole = manifold(real, fake)
    monkeypatch.setattr(module, "_ROWS", 7)
    for columns in (10_000, 9, 2):
        monkeypatch.setattr(module, "_COLUMNS", columns)
        assert manifold(real, fake) == whole
    assert manifold(real, fake, distances=neighbour_distances(real, 3)) == whole
    assert 0 < whole.precision.value < 1


def test_too_many_neighbours_are_refused():
    with pytest.raises(ValueError, match=r"eval\.neighbours: expected 1 to 4"):
        neighbour_radii(torch.zeros(5, 2), 5)


def test_density_and_coverage_on_a_line():
    """Neighbourhoods of 0, 1, 3, 7 with k = 1 have radii 1, 1, 2, 4: [-1, 1], [0, 2], [1, 5], [3, 11]."""
    real, fake = torch.tensor([[0.0], [1.0], [3.0], [7.0]]), torch.tensor([[1.0], [4.0]])
    found = manifold(real, fake, 1)
    assert found.density.value == (3 + 2) / 2
    assert found.coverage.value == 1.0
    few = manifold(real, torch.tensor([[-0.5], [20.0]]), 1)
    assert (few.density.value, few.coverage.value, few.precision.value) == (0.5, 0.25, 0.5)
    assert manifold(real, torch.tensor([[4.0], [4.5], [9.0]]), 2).density.value == (2 + 2 + 1) / 3 / 2


def test_fresh_samples_have_the_expected_density_and_coverage():
    """Of N real and M fake rows of one distribution (arXiv 2002.09797, Sec. 3.3, here by counting orders)."""
    N, M, k, sets = 60, 40, 3, 60
    density, coverage = [], []
    for seed in range(sets):
        x = torch.randn((N + M, 5), generator=torch.Generator().manual_seed(seed))
        found = manifold(x[:N], x[N:], k)
        density.append(found.density.value)
        coverage.append(found.coverage.value)
    expected = 1.0
    for i in range(k):
        expected *= (N - 1 - i) / (N + M - 1 - i)
    assert sum(density) / sets == pytest.approx(1, abs=0.04)
    assert sum(coverage) / sets == pytest.approx(1 - expected, abs=0.02)


def test_authenticity_is_a_third_for_fresh_samples_on_a_line_and_zero_for_copies():
    """Two random neighbours on a line are mutual with probability 2/3."""
    x = torch.rand((6000, 1), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    real = x[:3000]
    fresh = manifold(real, x[3000:3100], 1)  # few, so that they are almost independent of one another
    many = [manifold(real, part, 1).authenticity.value for part in x[3000:].split(100)]
    assert sum(many) / len(many) == pytest.approx(1 / 3, abs=0.03)
    assert fresh.authenticity.spread == pytest.approx((many[0] * (1 - many[0]) / 100) ** 0.5)
    assert manifold(real, real[:50], 1).authenticity.value == 0
    assert manifold(real, real[:50] + 10, 1).authenticity.value == 1


def test_the_nearest_of_all_blocks_counts(monkeypatch):
    real, fake = cluster(0, 70, 0), cluster(0.1, 50, 1)
    distance = torch.cdist(fake.double(), real.double())
    own = torch.cdist(real.double(), real.double()).fill_diagonal_(torch.inf).min(1).values
    expected = (distance.min(1).values > own[distance.argmin(1)]).double().mean().item()
    monkeypatch.setattr(module, "_COLUMNS", 13)
    assert manifold(real, fake, 3).authenticity.value == pytest.approx(expected)
    assert 0.05 < expected < 0.95
