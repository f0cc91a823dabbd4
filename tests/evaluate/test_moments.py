"""Streaming, merging and weighting agree with numpy's one-pass moments."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cmcore.evaluate.moments import Moments


def features(count: int = 300, dim: int = 5) -> torch.Tensor:
    rng = torch.Generator().manual_seed(count)
    mixing = torch.randn((dim, dim), generator=rng, dtype=torch.float64)
    return 100 + torch.randn((count, dim), generator=rng, dtype=torch.float64) @ mixing


def assert_same(a: Moments, b: Moments, tolerance: float = 1e-10) -> None:
    assert a.count == b.count
    torch.testing.assert_close(a.mean, b.mean, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(a.cov, b.cov, rtol=tolerance, atol=tolerance)


def test_equals_numpy():
    X = features()
    moments = Moments.of(X)
    np.testing.assert_allclose(moments.mean, X.numpy().mean(0), rtol=1e-14)
    np.testing.assert_allclose(moments.cov, np.cov(X.numpy(), rowvar=False), rtol=1e-12)


@given(st.lists(st.integers(1, 299), max_size=8))
def test_any_partition_streams_to_the_one_pass_moments(cuts):
    X = features()
    parts = [part for part in X.tensor_split(sorted(cuts)) if len(part)]
    assert_same(Moments.stream(parts), Moments.of(X))


@given(st.integers(1, 150), st.integers(151, 299))
def test_merge_is_associative_and_commutative(first, second):
    a, b, c = (Moments.of(part) for part in features().tensor_split([first, second]))
    assert_same(a.merge(b).merge(c), a.merge(b.merge(c)))
    assert_same(a.merge(b), b.merge(a))


def test_float32_input_is_accumulated_in_float64():
    X = torch.full((100_000, 1), 1000.1)
    X[::2] += 1e-2
    assert float(Moments.stream(X.split(1000)).cov) == pytest.approx(X.double().var().item(), rel=1e-9)


def test_weights_are_repetitions():
    X = features(40)
    weights = torch.arange(40) % 4
    assert_same(Moments.weighted(X, weights), Moments.of(X.repeat_interleave(weights, 0)))


def test_round_trip_and_the_edm_layout(tmp_path):
    moments = Moments.of(features())
    moments.save(tmp_path / "moments.npz")
    assert_same(Moments.load(tmp_path / "moments.npz"), moments, 0)
    np.savez(tmp_path / "edm.npz", mu=moments.mean.numpy(), sigma=moments.cov.numpy())
    loaded = Moments.load(tmp_path / "edm.npz")
    assert loaded.count == 0
    assert torch.equal(loaded.cov, moments.cov)


def test_wrong_files_and_shapes_are_named(tmp_path):
    np.savez(tmp_path / "wrong.npz", mean=np.zeros(3))
    with pytest.raises(ValueError, match=r"wrong\.npz: expected the arrays mu and sigma, got mean"):
        Moments.load(tmp_path / "wrong.npz")
    np.savez(tmp_path / "shape.npz", mu=np.zeros(3), sigma=np.zeros((2, 2)))
    with pytest.raises(ValueError, match=r"shape\.npz: expected mu \(D,\)"):
        Moments.load(tmp_path / "shape.npz")
    with pytest.raises(ValueError, match="at least one batch"):
        Moments.stream([])
    with pytest.raises(ValueError, match="expected 5 dimensions, got 2"):
        Moments.of(features()).merge(Moments.of(features(dim=2)))
