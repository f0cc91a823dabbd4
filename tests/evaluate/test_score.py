"""The inception-style score at its known values."""

import math

import pytest
import torch

from cmcore.evaluate.score import classifier_score, split_score

K = 10


def test_uninformed_classifier_scores_one():
    assert classifier_score(torch.zeros(50, K)) == pytest.approx(1, rel=1e-12)


def test_one_certain_class_scores_one():
    assert classifier_score(1000 * torch.eye(K)[torch.zeros(50, dtype=torch.long)]) == pytest.approx(1, rel=1e-12)


def test_certain_and_even_over_k_classes_scores_k():
    assert classifier_score(1000 * torch.eye(K)[torch.arange(50) % K]) == pytest.approx(K, rel=1e-12)


def test_impossible_classes_are_no_nan():
    logits = torch.full((4, 3), -math.inf)
    logits[[0, 1, 2, 3], [0, 1, 0, 1]] = 0.0
    assert classifier_score(logits) == pytest.approx(2, rel=1e-12)


def test_mutual_information_by_hand():
    """Two classes with p = (q, 1 - q) and its mirror: the marginal is even, so the score is 2 exp(-H(q))."""
    q = 0.9
    logits = torch.tensor([[q, 1 - q], [1 - q, q]], dtype=torch.float64).log()
    entropy = -(q * math.log(q) + (1 - q) * math.log(1 - q))
    assert classifier_score(logits) == pytest.approx(2 * math.exp(-entropy), rel=1e-12)


def test_splits_average_their_scores():
    logits = 1000 * torch.eye(2)[torch.arange(1000) % 2]
    one = split_score(logits, splits=1, seed=0)
    assert (one.value, one.spread) == (pytest.approx(2, rel=1e-12), 0)
    ten = split_score(logits, splits=10, seed=0)
    assert 1.9 < ten.value < 2
    assert ten.spread > 0
    with pytest.raises(ValueError, match=r"eval\.score_splits"):
        split_score(logits[:5], splits=6, seed=0)
