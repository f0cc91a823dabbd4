"""Softmax attention: by a fused kernel, or written out where a forward-mode derivative is asked for."""

import math

import torch
from torch import Tensor, nn

from cmcore.layers.dual import has_tangent


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """softmax(q k^T / sqrt(C)) v, for q, k, v (B, heads, positions, C).

    Fused kernels have no forward-mode derivative. The written-out form takes the softmax in float32 at least, as they
    do inside.
    """
    if not any(has_tangent(part) for part in (q, k, v)):
        return nn.functional.scaled_dot_product_attention(q, k, v)
    scores = (q @ (k / math.sqrt(q.shape[-1])).mT).to(torch.promote_types(q.dtype, torch.float32))
    return scores.softmax(-1).to(v.dtype) @ v
