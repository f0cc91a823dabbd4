"""The Frechet distance against its closed forms."""

import math
import time

import pytest
import torch

from cmcore.evaluate.frechet import covariance_root, frechet, frechet_distance, frechet_infinity, frechet_spread
from cmcore.evaluate.moments import Moments


def gaussian(mean: torch.Tensor, cov: torch.Tensor) -> Moments:
    return Moments(1000, mean.double(), cov.double())


def random_covariance(dim: int, rank: int, seed: int) -> torch.Tensor:
    A = torch.randn((dim, rank), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return A @ A.T


def test_diagonal_covariances():
    s, t = torch.tensor([1.0, 4.0, 9.0]), torch.tensor([4.0, 1.0, 0.0])
    a, b = gaussian(torch.zeros(3), s.diag()), gaussian(torch.tensor([1.0, 2.0, 2.0]), t.diag())
    expected = 9 + (s.sqrt() - t.sqrt()).square().sum().item()
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-12)


def test_two_by_two_closed_form():
    """In two dimensions tr (A B)^{1/2} = sqrt(tr A B + 2 sqrt(det A B)), by Cayley and Hamilton."""
    A, B = random_covariance(2, 2, 0), random_covariance(2, 2, 1)
    overlap = math.sqrt((A @ B).trace() + 2 * math.sqrt((A @ B).det()))
    expected = (A.trace() + B.trace()).item() - 2 * overlap
    zero = torch.zeros(2)
    assert frechet_distance(gaussian(zero, A), gaussian(zero, B)) == pytest.approx(expected, rel=1e-12)


def test_invariant_under_rotation_and_symmetric():
    a = gaussian(torch.randn(6, generator=torch.Generator().manual_seed(3)), random_covariance(6, 6, 4))
    b = gaussian(torch.zeros(6), random_covariance(6, 6, 5))
    Q = torch.linalg.qr(random_covariance(6, 6, 6)).Q
    turned = [gaussian(Q @ m.mean, Q @ m.cov @ Q.T) for m in (a, b)]
    assert frechet_distance(*turned) == pytest.approx(frechet_distance(a, b), rel=1e-10)
    assert frechet_distance(b, a) == pytest.approx(frechet_distance(a, b), rel=1e-12)


@pytest.mark.parametrize("rank", [1, 3, 8])
def test_rank_deficient_covariances(rank):
    """A subspace times a scalar: d(S, c^2 S) = (c - 1)^2 tr S at any rank, and d(S, S) = 0."""
    S, zero = random_covariance(8, rank, rank), torch.zeros(8)
    assert frechet_distance(gaussian(zero, S), gaussian(zero, S)) == pytest.approx(0, abs=1e-11 * S.trace().item())
    expected = 4 * S.trace().item()
    assert frechet_distance(gaussian(zero, S), gaussian(zero, 9 * S)) == pytest.approx(expected, rel=1e-11)


def test_orthogonal_subspaces_do_not_overlap():
    a, b = torch.tensor([1.0, 2.0, 0.0, 0.0]), torch.tensor([0.0, 0.0, 3.0, 4.0])
    zero = torch.zeros(4)
    assert frechet_distance(gaussian(zero, a.diag()), gaussian(zero, b.diag())) == pytest.approx(10, rel=1e-12)


def test_root_squares_to_the_covariance():
    S = random_covariance(7, 4, 9)
    root = covariance_root(S)
    torch.testing.assert_close(root @ root, S, rtol=1e-10, atol=1e-10)


def test_mismatched_dimensions_are_refused():
    with pytest.raises(ValueError, match="expected equal dimensions, got 2 and 3"):
        frechet_distance(gaussian(torch.zeros(2), torch.eye(2)), gaussian(torch.zeros(3), torch.eye(3)))


def test_spread_matches_the_sampling_distribution():
    """The bootstrap's deviation is that of the distance over independent samples, within the error of 60 replicates."""
    rng = torch.Generator().manual_seed(0)
    reference = gaussian(torch.zeros(3), torch.eye(3))

    def draw() -> torch.Tensor:
        return 1 + 2 * torch.randn((400, 3), generator=rng, dtype=torch.float64)

    observed = torch.tensor([frechet_distance(Moments.of(draw()), reference) for _ in range(200)]).std().item()
    estimates = [frechet_spread(draw(), reference, 60, seed) for seed in range(4)]
    assert sum(estimates) / 4 == pytest.approx(observed, rel=0.2)


def test_spread_is_addressed_and_can_be_switched_off():
    X, reference = (
        torch.randn((50, 3), generator=torch.Generator().manual_seed(1)),
        gaussian(torch.ones(3), torch.eye(3)),
    )
    own = Moments.of(X)
    assert frechet(own, X, reference, 5, seed=1) == frechet(own, X, reference, 5, seed=1)
    assert frechet(own, X, reference, 5, seed=1).spread != frechet(own, X, reference, 5, seed=2).spread > 0
    assert frechet(own, X, reference, 0, seed=1).spread == 0.0
    # With a part of the features at hand a bootstrap would be of fewer samples, whose distance is another.
    assert frechet(own, X[:40], reference, 5, seed=1) == frechet(own, X, reference, 0, seed=1)


def test_twenty_replicates_are_cheap():
    X = torch.randn((5000, 64), generator=torch.Generator().manual_seed(2))
    start = time.process_time()
    frechet_spread(X, Moments.of(X + 1), 20, seed=0)
    assert time.process_time() - start < 2


def test_the_limit_of_infinitely_many_samples_has_no_bias_and_a_true_error():
    """Samples of the reference's own Gaussian: the distance of N samples is about c/N, its limit is 0."""
    rng = torch.Generator().manual_seed(0)
    reference = gaussian(torch.zeros(4), torch.eye(4))
    draws = [torch.randn((100, 4), generator=rng, dtype=torch.float64) for _ in range(150)]
    plain = torch.tensor([frechet_distance(Moments.of(x), reference) for x in draws])
    found = [frechet_infinity(x, reference, seed) for seed, x in enumerate(draws)]
    values = torch.tensor([one.value for one in found])
    assert plain.mean() > 0.05
    assert abs(values.mean()) < 0.1 * plain.mean()
    assert sum(one.spread for one in found) / len(found) == pytest.approx(values.std().item(), rel=0.35)


def test_the_limit_of_a_shifted_gaussian_is_its_distance():
    reference, shift = gaussian(torch.zeros(3), torch.eye(3)), torch.tensor([0.5, 0.0, 0.0])
    x = shift + 2 * torch.randn((4000, 3), generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    found = frechet_infinity(x, reference, 0)
    assert found.value == pytest.approx(0.25 + 3, abs=3 * found.spread)
    assert 0.01 < found.spread < 0.2
    assert found == frechet_infinity(x, reference, 0)


def test_the_limit_needs_two_samples():
    reference = gaussian(torch.zeros(3), torch.eye(3))
    assert math.isfinite(frechet_infinity(torch.randn(2, 3), reference, 0).value)
    with pytest.raises(ValueError, match="at least 2, got 1"):
        frechet_infinity(torch.randn(1, 3), reference, 0)
