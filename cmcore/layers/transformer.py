"""Parts of transformers whose tokens h (B, T, D) are modulated by the noise level (DiT, arXiv 2212.09748, sec. 3.2)."""

import math
from typing import Any, Literal

import torch
from torch import nn

from cmcore.dual import Dual, Value, add, each, mul
from cmcore.layers.attention import attend
from cmcore.layers.functions import dropout, scale_shift
from cmcore.layers.linear import linear
from cmcore.layers.norms import GroupNorm, pixel_norm

TokenNorm = Literal["adaptive", "double"]


def gelu(x: Value) -> Any:
    """The Gaussian error linear unit in its tanh form (arXiv 1606.08415)."""
    if not isinstance(x, Dual):
        return nn.functional.gelu(x, approximate="tanh")
    value = nn.functional.gelu(x.value, approximate="tanh")
    with torch.no_grad():
        wide = torch.promote_types(x.value.dtype, x.tangent.dtype)
        # The derivative is diagonal: its transpose, which has a kernel, is itself.
        tangent = torch.ops.aten.gelu_backward(x.tangent.to(wide), x.value.to(wide), approximate="tanh")
    return Dual(value, tangent, x.half)


class Modulation(nn.Module):
    """Linear layer e (B, E) -> the vectors (B, 1, D) that modulate a block: shift and scale, or shift, scale and gate.

    With "adaptive", scale and shift are those of adaLN-Zero, zero at first. With "double" they are normalised, as sCM
    wants it of its networks (arXiv 2410.11081, sec. 4.1), and start as `ModulatedNorm` does; gates are zero at first.
    """

    def __init__(self, embedding: int, channels: int, norm: TokenNorm, *, gate: bool) -> None:
        super().__init__()
        self.norm, self.parts = norm, 3 if gate else 2
        self.layer = linear(embedding, self.parts * channels, gain=float(norm == "double"))
        if norm == "double":
            with torch.no_grad():
                self.layer.bias[channels : 2 * channels].fill_(1)
                self.layer.weight[2 * channels :].zero_()

    def forward(self, e: Value) -> list[Any]:
        b, s, *gate = self.layer(e).chunk(self.parts, dim=1)
        s, b = (add(s, 1), b) if self.norm == "adaptive" else (pixel_norm(s), pixel_norm(b))
        return [each(lambda v: v[:, None], part) for part in (b, s, *gate)]


class TokenLayerNorm(nn.Module):
    """Layer normalisation of every token of h (B, T, D), without weights of its own."""

    def __init__(self, channels: int, eps: float) -> None:
        super().__init__()
        self.norm = GroupNorm(channels, groups=1, eps=eps, affine=False)

    def forward(self, h: Value) -> Value:
        return self.norm(h.reshape(-1, h.shape[-1])).reshape(h.shape)


class Attention(nn.Module):
    """Self-attention among the tokens of h (B, T, D)."""

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv, self.out = linear(channels, 3 * channels), linear(channels, channels)

    def forward(self, h: Value) -> Value:
        batch, tokens, channels = h.shape
        qkv = self.qkv(h).reshape(batch, tokens, 3, self.heads, channels // self.heads)
        q, k, v = (each(lambda x: x.transpose(1, 2), part) for part in qkv.unbind(2))
        return self.out(each(lambda x: x.transpose(1, 2), attend(q, k, v)).reshape(h.shape))


class FeedForward(nn.Module):
    """W1 gelu(W0 h) of every token."""

    def __init__(self, channels: int, inner: int) -> None:
        super().__init__()
        self.layer0, self.layer1 = linear(channels, inner), linear(inner, channels)

    def forward(self, h: Value) -> Value:
        return self.layer1(gelu(self.layer0(h)))


class ModulatedBranch(nn.Module):
    """h + gate(e) dropout(f(norm(h) scale(e) + shift(e))), for tokens h (B, T, D) and e (B, E)."""

    def __init__(
        self, branch: nn.Module, channels: int, embedding: int, norm: TokenNorm, *, eps: float, dropout: float
    ) -> None:
        super().__init__()
        self.dropout = dropout
        self.modulation = Modulation(embedding, channels, norm, gate=True)
        self.norm, self.branch = TokenLayerNorm(channels, eps), branch

    def forward(self, h: Value, e: Value) -> Value:
        shift, scale, gate = self.modulation(e)
        y = self.branch(scale_shift(self.norm(h), scale, shift))
        if self.training and self.dropout:
            y = dropout(y, self.dropout)
        return add(h, mul(gate, y))


def grid_positions(side: int, channels: int) -> torch.Tensor:
    """(side^2, channels): sines and cosines of the column of each token, then of its row (DiT's fixed embedding).

    The frequencies fall from 1 to almost 1/10000 in channels / 4 steps.
    """
    quarter = channels // 4
    at = torch.arange(side, dtype=torch.float64)
    angles = torch.outer(at, torch.exp(-math.log(10_000) * torch.arange(quarter, dtype=torch.float64) / quarter))
    line = torch.cat([angles.sin(), angles.cos()], 1)
    columns, rows = line.expand(side, side, -1), line[:, None].expand(side, side, -1)
    return torch.cat([columns, rows], 2).flatten(0, 1).to(torch.get_default_dtype())
