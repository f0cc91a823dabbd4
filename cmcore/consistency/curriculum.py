"""Curricula: how fine the discretisation is, as pure functions of progress."""

import math

import torch
from torch import Tensor


def ct_points(fraction: float, s0: int, s1: int) -> int:
    """N(k), the number of grid points of consistency training (arXiv 2303.01469, App. C), at k/K = fraction."""
    return math.ceil(math.sqrt(fraction * ((s1 + 1) ** 2 - s0**2) + s0**2) - 1) + 1


def ct_decay(n: int, s0: int, mu0: float) -> float:
    """mu(k) = exp(s0 ln(mu0) / n), the decay of the EMA target (arXiv 2303.01469, App. C).

    The paper's n is N(k). In both official codes, which made its numbers, it is N(k) - 1, the number of gaps.
    """
    return math.exp(s0 * math.log(mu0) / n)


def ict_points(k: int, K: int, s0: int, s1: int) -> int:
    """N(k) = min(s0 2^floor(k/K'), s1) + 1, K' = floor(K / (log2 floor(s1/s0) + 1)) (arXiv 2310.14189, Eq. 12)."""
    ratio = s1 // s0
    K_prime = max(1, math.floor(K / (math.log2(ratio) + 1)))
    # The cap of the exponent only keeps the integer small: s0 2^bits is above s1.
    return min(s0 * 2 ** min(k // K_prime, ratio.bit_length()), s1) + 1


def ect_stage(fraction: float, stages: int) -> int:
    """The stage of Easy Consistency Tuning: `stages` equal parts of the run (arXiv 2406.14548)."""
    return min(math.floor(fraction * stages), stages - 1)


def ect_target_level(t: Tensor, stage: int, *, q: float, k: float, b: float, ratio_limit: float = 1.0) -> Tensor:
    """r(t) = max(0, t (1 - n(t)/q^(stage+1))), n(t) = 1 + k sigmoid(-b t) (arXiv 2406.14548, sec. 3).

    Args:
        t: levels (B,).
        stage: the stage, from 0.
        q: base of the shrinking gap.
        k: height of the sigmoid.
        b: slope of the sigmoid.
        ratio_limit: upper bound of r/t (arXiv 2410.14895 uses 0.999); 1 means none.

    Returns:
        Levels r (B,), below t; 0 where the target is the clean image.
    """
    n = 1 + k * torch.sigmoid(-b * t)
    ratio = (1 - n / q ** (stage + 1)).clamp(min=0.0, max=ratio_limit)
    return t * ratio
