"""Functions that networks are made of, of tensors and of Duals (see cmcore/dual.py). All work out of place.

Tangents of sums, products and activations are in the precision of what they meet, those of convolutions and linear
layers in the Dual's `half`; parameters have no tangents.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from cmcore.dual import Dual, Value, add, each, half_of, mul, value_of
from cmcore.tensors import full_precision


def scale_shift(x: Value, s: Value, b: Value) -> Any:
    """x s + b, by broadcasting."""
    value = torch.addcmul(value_of(b), value_of(x), value_of(s))
    if not any(isinstance(part, Dual) for part in (x, s, b)):
        return value
    with torch.no_grad():
        return Dual(value, add(mul(x, s), b).tangent, half_of(x, s, b))  # the value of that is another by rounding


def cat(xs: Sequence[Value], dim: int = 1) -> Any:
    """`torch.cat`."""
    return each(lambda *parts: torch.cat(parts, dim), *xs)


def sin(x: Value) -> Any:
    """The sine of every entry."""
    if not isinstance(x, Dual):
        return x.sin()
    with torch.no_grad():
        tangent = x.value.cos() * x.tangent
    return Dual(x.value.sin(), tangent, x.half)


def cos(x: Value) -> Any:
    """The cosine of every entry."""
    if not isinstance(x, Dual):
        return x.cos()
    with torch.no_grad():
        tangent = -x.value.sin() * x.tangent
    return Dual(x.value.cos(), tangent, x.half)


def silu(x: Value) -> Any:
    """x sigmoid(x)."""
    if not isinstance(x, Dual):
        return nn.functional.silu(x)
    value = nn.functional.silu(x.value)
    with torch.no_grad():
        wide = torch.promote_types(x.value.dtype, x.tangent.dtype)
        # The derivative is diagonal: its transpose, which has a kernel, is itself.
        tangent = torch.ops.aten.silu_backward(x.tangent.to(wide), x.value.to(wide))
    return Dual(value, tangent, x.half)


def clamp(x: Value, bound: float) -> Any:
    """x within [-bound, bound]."""
    if not isinstance(x, Dual):
        return x.clamp(-bound, bound)
    with torch.no_grad():
        tangent = x.tangent * (x.value.abs() <= bound)
    return Dual(x.value.clamp(-bound, bound), tangent, x.half)


def dropout(x: Value, p: float) -> Any:
    """x with each entry zero with probability p, over 1 - p; the tangent drops what the value drops."""
    if not isinstance(x, Dual):
        return nn.functional.dropout(x, p)
    if x.value.is_cuda:  # as dropout does there, in one kernel
        value, kept = torch.native_dropout(x.value, p, True)
        with torch.no_grad():
            return Dual(value, x.tangent * kept / (1 - p), x.half)
    factor = nn.functional.dropout(torch.ones_like(x.value), p)
    with torch.no_grad():
        tangent = x.tangent * factor
    return Dual(x.value * factor, tangent, x.half)


def linear(x: Value, weight: Tensor, bias: Tensor | None = None) -> Any:
    """`torch.nn.functional.linear`."""
    return _weighted(nn.functional.linear, x, weight, bias, {})


def conv2d(x: Value, weight: Tensor, bias: Tensor | None = None, **options: Any) -> Any:
    """`torch.nn.functional.conv2d`."""
    return _weighted(nn.functional.conv2d, x, weight, bias, options)


def _weighted(
    function: Callable[..., Tensor], x: Value, weight: Tensor, bias: Tensor | None, options: dict[str, Any]
) -> Any:
    if not isinstance(x, Dual):
        return function(x, weight, bias, **options)
    value = function(x.value, weight, bias, **options)
    with torch.no_grad(), full_precision(value.device):
        dtype = x.half or x.tangent.dtype
        tangent = function(x.tangent.to(dtype), weight.to(dtype), **options)
    return Dual(value, tangent, x.half)
