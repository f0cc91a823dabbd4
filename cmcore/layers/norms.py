"""Normalisations, plain and modulated. Out of place, of tensors and of Duals, as all parts of networks."""

import math
from typing import Any, Literal

import torch
from torch import Tensor, nn

from cmcore.dual import Dual, Value, add
from cmcore.layers.functions import scale_shift
from cmcore.layers.linear import InitKind, linear
from cmcore.tensors import full_precision

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

    def forward(self, x: Value) -> Value:
        if not isinstance(x, Dual):
            return group_norm(x, self.groups, self.weight, self.bias, self.eps)
        value = group_norm(x.value, self.groups, self.weight, self.bias, self.eps)
        with torch.no_grad(), full_precision(value.device):
            tangent = normalised_tangent(x.value, x.tangent, self.groups, self.eps)
            if self.weight is not None:
                tangent = tangent * self.weight.reshape(-1, *[1] * (x.ndim - 2))
        return Dual(value, tangent, x.half)


def group_norm(x: Tensor, groups: int, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
    """`torch.nn.functional.group_norm`, with statistics in float32 at least.

    In a compiled network on a GPU it is written out. PyTorch's operation copies images in channels_last there, forwards
    and backwards, compiled or not; what is written out has any layout, and is fused with what is around it.
    """
    if x.is_cpu or not torch.compiler.is_dynamo_compiling():
        return nn.functional.group_norm(x, groups, weight, bias, eps)
    wide = torch.promote_types(x.dtype, torch.float32)
    parts = x.to(wide).reshape(x.shape[0], groups, x.shape[1] // groups, -1)
    var, mean = torch.var_mean(parts, dim=(2, 3), correction=0, keepdim=True)
    y = ((parts - mean) * torch.rsqrt(var + eps)).reshape(x.shape)
    if weight is not None and bias is not None:
        shape = (-1, *[1] * (x.ndim - 2))
        y = y * weight.reshape(shape) + bias.reshape(shape)
    return y if x.is_cuda and torch.is_autocast_enabled("cuda") else y.to(x.dtype)  # autocast of GPUs has it in float32


def normalised_tangent(x: Tensor, tangent: Tensor, groups: int, eps: float) -> Tensor:
    """The tangent of x (B, C, ...) normalised in groups of channels, in float32 at least.

    The derivative of the normalised x, rstd (1 - mean - y <y, .>/n), is a symmetric matrix. So the kernel of the
    backward pass, which multiplies by its transpose, serves here.
    """
    wide = torch.promote_types(torch.promote_types(x.dtype, tangent.dtype), torch.float32)
    known = x.is_cpu or torch.compiler.is_dynamo_compiling()  # kernels for GPUs know contiguous tensors alone
    turned = known and x.ndim == 4 and x.is_contiguous(memory_format=torch.channels_last)
    layout = torch.channels_last if turned else torch.contiguous_format
    x, tangent = (part.to(wide).contiguous(memory_format=layout) for part in (x, tangent))
    shape = (x.shape[0], x.shape[1], math.prod(x.shape[2:]), groups)
    _, mean, rstd = torch.native_group_norm(x, None, None, *shape, eps)
    wanted = [True, False, False]  # the gradient of the input alone
    return torch.ops.aten.native_group_norm_backward(tangent, x, mean, rstd, None, *shape, wanted)[0]


def pixel_norm(v: Value, eps: float = 1e-8) -> Any:
    """v (B, C) over its root mean square across the channels (arXiv 1710.10196, sec. 4.2).

    The mean square is taken in float32 at least: in float16 it overflows from 256 on, and eps is 0.
    """
    if not isinstance(v, Dual):
        wide = v.to(torch.promote_types(v.dtype, torch.float32))
        return v * torch.rsqrt(wide.square().mean(1, keepdim=True) + eps).to(v.dtype)
    with torch.no_grad(), full_precision(v.device):
        wide = v.value.to(torch.promote_types(v.dtype, torch.float32))
        r = torch.rsqrt(wide.square().mean(1, keepdim=True) + eps)
        tangent = r * v.tangent - wide * r**3 * (wide * v.tangent).mean(1, keepdim=True)
    return Dual(pixel_norm(v.value, eps), tangent, v.half)


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

    def forward(self, x: Value, e: Value) -> Value:
        shape = (x.shape[0], -1, *[1] * (x.ndim - 2))
        if self.kind == "group":
            return self.norm(add(x, self.affine(e).reshape(shape)))
        s, b = self.affine(e).chunk(2, dim=1)
        s, b = (add(s, 1), b) if self.kind == "adaptive" else (pixel_norm(s), pixel_norm(b))
        return scale_shift(self.norm(x), s.reshape(shape), b.reshape(shape))
