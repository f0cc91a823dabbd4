"""Inception-style score of a classifier's logits (arXiv 1606.03498)."""

import numpy as np
import torch
from torch import Tensor

from cmcore.evaluate.kernel import FIDELITY_SEED
from cmcore.evaluate.records import Measured
from cmcore.rng import generator


def classifier_score(logits: Tensor) -> float:
    """exp(E_x KL(p(y|x) || p(y)))   (arXiv 1606.03498, Sec. 4) for logits (B, K): between 1 and K."""
    log_p = logits.double().log_softmax(1)
    p = log_p.exp()
    # xlogy: a class that is never predicted has p = 0 and marginal 0, and contributes 0.
    kl = (p * log_p.clamp(min=torch.finfo(torch.float64).min)).sum(1) - torch.xlogy(p, p.mean(0)).sum(1)
    return float(kl.mean().exp())


def split_score(logits: Tensor, *, splits: int, seed: int, fidelity: bool = False) -> Measured:
    """Mean and standard deviation of the score over equal parts of the shuffled samples, as scores are published.

    With `fidelity` the samples are shuffled and cut as torch-fidelity does by default.
    """
    n = len(logits)
    if not 1 <= splits <= n:
        raise ValueError(f"eval.score_splits: expected 1 to {n} (the samples), got {splits}")
    if fidelity:
        rows = torch.from_numpy(np.random.RandomState(FIDELITY_SEED).permutation(n))
        parts = [logits[rows[i * n // splits : (i + 1) * n // splits]] for i in range(splits)]
    else:
        shuffled = logits[torch.randperm(n, generator=generator(seed, "score"))]
        parts = shuffled.tensor_split(splits)
    scores = torch.tensor([classifier_score(part) for part in parts], dtype=torch.float64)
    return Measured(float(scores.mean()), float(scores.std(correction=0)), "splits")
