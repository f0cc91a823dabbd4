"""A value and its tangent, the derivative along a direction, carried through a function side by side.

What networks are made of takes a tensor or a `Dual` (layers/functions.py), so one `forward` gives both. The value has
the graph that it would have alone; the tangent has none, is computed beside it and keeps nothing for a backward pass.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from cmcore.tensors import full_precision


@dataclass(slots=True, eq=False)  # a dataclass, as fully_shard looks into no other for the tensors of a module
class Dual:
    """A tensor with its tangent, of one shape.

    Args:
        value: the tensor.
        tangent: its derivative, without a graph.
        half: 16-bit type in which matrix products of the tangent are computed; None is the tangent's own.
    """

    value: Tensor
    tangent: Tensor
    half: torch.dtype | None = None

    @property
    def shape(self) -> torch.Size:
        return self.value.shape

    @property
    def ndim(self) -> int:
        return self.value.ndim

    @property
    def dtype(self) -> torch.dtype:
        return self.value.dtype

    @property
    def device(self) -> torch.device:
        return self.value.device

    @property
    def mT(self) -> "Dual":  # noqa: N802 (torch's name)
        return Dual(self.value.mT, self.tangent.mT, self.half)

    def to(self, dtype: torch.dtype) -> "Dual":
        """The value in that type, and the tangent in float32 at least."""
        return Dual(self.value.to(dtype), self.tangent.to(torch.promote_types(dtype, torch.float32)), self.half)

    def reshape(self, *shape: Any) -> "Dual":
        return Dual(self.value.reshape(*shape), self.tangent.reshape(*shape), self.half)

    def flatten(self, start_dim: int = 0) -> "Dual":
        return Dual(self.value.flatten(start_dim), self.tangent.flatten(start_dim), self.half)

    def chunk(self, chunks: int, dim: int = 0) -> list["Dual"]:
        return self._split(self.value.chunk(chunks, dim), self.tangent.chunk(chunks, dim))

    def unbind(self, dim: int = 0) -> list["Dual"]:
        return self._split(self.value.unbind(dim), self.tangent.unbind(dim))

    def _split(self, values: Sequence[Tensor], tangents: Sequence[Tensor]) -> list["Dual"]:
        return [Dual(value, tangent, self.half) for value, tangent in zip(values, tangents, strict=True)]


Value = Tensor | Dual


def value_of(x: Value | float) -> Any:
    """The tensor of a Dual, and whatever else as it is."""
    return x.value if isinstance(x, Dual) else x


def half_of(*xs: Value | float) -> torch.dtype | None:
    """The 16-bit type of a result's tangent: that of the first Dual that has one."""
    for x in xs:
        if isinstance(x, Dual) and x.half is not None:
            return x.half
    return None


def add(x: Value, y: Value | float) -> Any:
    """x + y, by broadcasting."""
    if not isinstance(x, Dual):
        return add(y, x) if isinstance(y, Dual) else x + y
    if not isinstance(y, Dual):
        value = x.value + y
        return Dual(value, x.tangent.expand(value.shape), x.half)
    value = x.value + y.value
    with torch.no_grad():
        return Dual(value, x.tangent + y.tangent, x.half or y.half)


def mul(x: Value, y: Value | float) -> Any:
    """x y, by broadcasting."""
    if not isinstance(x, Dual):
        return mul(y, x) if isinstance(y, Dual) else x * y
    with torch.no_grad():
        tangent = x.tangent * y.value + x.value * y.tangent if isinstance(y, Dual) else x.tangent * y
    return Dual(x.value * value_of(y), tangent, half_of(x, y))


def each(f: Callable[..., Tensor], *xs: Value) -> Any:
    """f, linear in its tensors taken together: of the values, and likewise of the tangents, zero for a plain tensor."""
    value = f(*[value_of(x) for x in xs])
    if not any(isinstance(x, Dual) for x in xs):
        return value
    with torch.no_grad(), full_precision(value.device):
        tangents = [x.tangent if isinstance(x, Dual) else torch.zeros_like(x) for x in xs]
        wide = tangents[0].dtype
        for tangent in tangents[1:]:
            wide = torch.promote_types(wide, tangent.dtype)
        return Dual(value, f(*[tangent.to(wide) for tangent in tangents]), half_of(*xs))


def entrywise(f: Callable[[Tensor], Tensor], x: Value) -> Any:
    """f, which acts on every entry alone; its derivative comes from reverse mode, so it is for small tensors: (B,)."""
    if not isinstance(x, Dual):
        return f(x)
    with torch.enable_grad():
        leaf = x.value.detach().requires_grad_()
        (slope,) = torch.autograd.grad(f(leaf).sum(), leaf)
    return Dual(f(x.value), slope * x.tangent, x.half)
