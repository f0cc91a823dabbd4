"""Inception-style score of a classifier's logits (arXiv 1606.03498)."""

import torch
from torch import Tensor

from cmcore.evaluate.records import Measured
from cmcore.rng import generator


def classifier_score(logits: Tensor) -> float:
    """exp(E_x KL(p(y|x) || p(y)))   (arXiv 1606.03498, Sec. 4) for logits (B, K): between 1 and K."""
    log_p = logits.double().log_softmax(1)
    p = log_p.exp()
    # xlogy: a class that is never predicted has p = 0 and a marginal of 0, and contributes nothing.
    kl = (p * log_p.clamp(min=torch.finfo(torch.float64).min)).sum(1) - torch.xlogy(p, p.mean(0)).sum(1)
    return float(kl.mean().exp())


def split_score(logits: Tensor, *, splits: int, seed: int) -> Measured:
    """Mean and standard deviation of the score over equal parts of the shuffled samples, as scores are published."""
    if not 1 <= splits <= len(logits):
        raise ValueError(f"eval.score_splits: expected 1 to {len(logits)} (the samples), got {splits}")
    shuffled = logits[torch.randperm(len(logits), generator=generator(seed, "score"))]
    scores = torch.tensor([classifier_score(part) for part in shuffled.tensor_split(splits)], dtype=torch.float64)
    return Measured(float(scores.mean()), float(scores.std(correction=0)), "splits")
