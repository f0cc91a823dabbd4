"""Softmax attention: its value by a fused kernel, its tangent written out, as fused kernels have none."""

import math
from typing import Any

import torch
from torch import nn

from cmcore.dual import Dual, Value, half_of
from cmcore.tensors import full_precision


def attend(q: Value, k: Value, v: Value) -> Any:
    """softmax(q k^T / sqrt(C)) v, for q, k, v (B, heads, positions, C), where k and v may have positions of their own.

    All are tensors, or q is a Dual; the tangent of plain k and v is zero.

    The tangent, with S = q k^T / sqrt(C) and P = softmax(S), is dP v + P dv, where dP = P (dS - <P, dS>) with the inner
    product over the positions that are attended to. P and dP are in float32 at least.
    """
    if isinstance(q, Dual):
        k, v = (x if isinstance(x, Dual) else Dual(x, torch.zeros_like(x)) for x in (k, v))
    if not (isinstance(q, Dual) and isinstance(k, Dual) and isinstance(v, Dual)):
        return nn.functional.scaled_dot_product_attention(q, k, v)  # pyright: ignore[reportArgumentType]
    value = nn.functional.scaled_dot_product_attention(q.value, k.value, v.value)
    half = half_of(q, k, v)
    with torch.no_grad(), full_precision(value.device):
        product = half or q.tangent.dtype
        wide = torch.promote_types(product, torch.float32)
        values, tangents = zip(*((x.value.to(product), x.tangent.to(product)) for x in (q, k, v)), strict=True)
        root = math.sqrt(q.shape[-1])
        keys, d_keys = (values[1] / root).mT, (tangents[1] / root).mT
        P = (values[0] @ keys).to(wide).softmax(-1)
        dS = (tangents[0] @ keys + values[0] @ d_keys).to(wide)
        dP = P * (dS - (P * dS).sum(-1, keepdim=True))
        tangent = dP.to(product) @ values[2] + P.to(product) @ tangents[2]
    return Dual(value, tangent, half)
