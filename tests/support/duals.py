"""The derivative along a direction by Duals, and by central differences."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from cmcore.dual import Dual


def jvp(f: Callable[..., Any], where: Sequence[Tensor], along: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """f and its derivative, as `torch.func.jvp` gives them."""
    out = f(*map(Dual, where, along))
    return out.value, out.tangent


@torch.no_grad()
def difference(f: Callable[..., Tensor], where: Sequence[Tensor], along: Sequence[Tensor], h: float = 1e-4) -> Tensor:
    """The derivative of f by differences of fourth order in h, for float64."""
    at = [f(*(v + k * h * t for v, t in zip(where, along, strict=True))) for k in (-2, -1, 1, 2)]
    return (at[0] - 8 * at[1] + 8 * at[2] - at[3]) / (12 * h)


def of_duals(net: Callable[..., Tensor]) -> Callable[..., Any]:
    """net(u, c_noise, ...) of tensors, made one of Duals too by torch's own forward mode."""

    def either(u: Any, c_noise: Any, *others: Any) -> Any:
        if not isinstance(u, Dual):
            return net(u, c_noise, *others)
        where, along = (u.value, c_noise.value), (u.tangent, c_noise.tangent)
        return Dual(*torch.func.jvp(lambda u, c: net(u, c, *others), where, along))

    return either
