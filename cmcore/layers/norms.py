"""Normalisations, plain and modulated. Out of place, with a forward-mode derivative, as all parts of networks."""

from typing import Literal

import torch
from torch import Tensor, nn

from cmcore.layers.dual import has_tangent
from cmcore.layers.linear import InitKind, linear

NormKind = Literal["group", "adaptive", "double"]


def group_count(channels: int, largest: int = 32, least_channels: int = 4) -> int:
    """Normalisation groups: EDM's min(32, channels / 4), or the next smaller number that divides the channels."""
    start = max(1, min(largest, channels // least_channels))
    return next(groups for groups in range(start, 0, -1) if channels % groups == 0)


class GroupNorm(nn.Module):
    """Group normalisation over (B, C, ...); with groups=1 on (B, C) it is layer normalisation."""

    def __init__(self, channels: int, *, groups: int = 0, eps: float = 1e-6, affine: bool = True) -> None:
        super().__init__()
        self.groups, self.eps = groups or group_count(channels), eps
        self.weight = nn.Parameter(torch.ones(channels)) if affine else None
        self.bias = nn.Parameter(torch.zeros(channels)) if affine else None

    def forward(self, x: Tensor) -> Tensor:
        if has_tangent(x):
            x = x.contiguous()  # its forward-mode derivative knows no other memory format
        return nn.functional.group_norm(x, self.groups, self.weight, self.bias, self.eps)


def pixel_norm(v: Tensor, eps: float = 1e-8) -> Tensor:
    """v (B, C) over its root mean square across the channels (arXiv 1710.10196, sec. 4.2).

    The mean square is taken in float32 at least: in float16 it overflows from 256 on, and eps is 0.
    """
    wide = v.to(torch.promote_types(v.dtype, torch.float32))
    return v * torch.rsqrt(wide.square().mean(1, keepdim=True) + eps).to(v.dtype)


class ModulatedNorm(nn.Module):
    """Normalisation of x (B, C, ...), modulated by the embedding e (B, E) of the noise level.

    - "group": norm(x + b(e)), DDPM++'s additive embedding;
    - "adaptive": norm(x) (1 + s(e)) + b(e), ADM's adaptive group normalisation (arXiv 2105.05233, sec. 3.1);
    - "double": norm(x) pnorm(s(e)) + pnorm(b(e)), sCM's adaptive double normalisation (arXiv 2410.11081, sec. 4.1).
      There the norm has no weights of its own, which could undo the bound, and the bias of s starts at 1.
    """

    def __init__(
        self,
        channels: int,
        embedding: int,
        kind: NormKind,
        *,
        groups: int = 0,
        eps: float = 1e-6,
        init: InitKind = "xavier",
    ) -> None:
        super().__init__()
        self.kind = kind
        self.norm = GroupNorm(channels, groups=groups, eps=eps, affine=kind != "double")
        self.affine = linear(embedding, channels if kind == "group" else 2 * channels, init=init)
        if kind == "double":
            with torch.no_grad():
                self.affine.bias[:channels].fill_(1)

    def forward(self, x: Tensor, e: Tensor) -> Tensor:
        shape = (x.shape[0], -1, *[1] * (x.ndim - 2))
        if self.kind == "group":
            return self.norm(x + self.affine(e).reshape(shape))
        s, b = self.affine(e).chunk(2, dim=1)
        s, b = (1 + s, b) if self.kind == "adaptive" else (pixel_norm(s), pixel_norm(b))
        return torch.addcmul(b.reshape(shape), self.norm(x), s.reshape(shape))
