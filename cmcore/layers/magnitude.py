"""Magnitude-preserving layers of EDM2 (Karras et al., arXiv 2312.02696): unit variance in, unit variance out.

Weights are used as if every output's weight vector had unit length, and are brought to that length between the steps of
the optimiser (`force_normalisation`), so that the learning rate alone says how fast they turn. Nothing is written
during a forward pass: it can be differentiated forwards, repeated and compiled.
"""

import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from cmcore.dual import Dual, Value, add, each, mul
from cmcore.layers.functions import conv2d, cos, linear
from cmcore.tensors import full_precision

NORM_EPS = 1e-4


def unit_magnitude(x: Value, dims: Sequence[int], eps: float = NORM_EPS) -> Any:
    """x over its root mean square along `dims`. Along the channels this is pixel normalisation.

    The square sum is taken in float32 at least, so that it does not overflow in float16.
    """
    if isinstance(x, Dual):
        return _unit_dual(x, tuple(dims), eps)
    wide = torch.promote_types(x.dtype, torch.float32)
    norm = torch.linalg.vector_norm(x, dim=tuple(dims), keepdim=True, dtype=wide)
    return x / (eps + norm / math.sqrt(x.numel() / norm.numel())).to(x.dtype)


def _unit_dual(x: Dual, dims: tuple[int, ...], eps: float) -> Dual:
    with torch.no_grad(), full_precision(x.device):
        v = x.value.to(torch.promote_types(x.dtype, torch.float32))
        norm = torch.linalg.vector_norm(v, dim=dims, keepdim=True)
        root = math.sqrt(v.numel() / norm.numel())
        r = eps + norm / root
        dr = (v * x.tangent).sum(dims, keepdim=True) / (root * norm)
        dr = torch.where(norm > 0, dr, 0.0)
        tangent = (x.tangent - v * (dr / r)) / r
    return Dual(unit_magnitude(x.value, dims, eps), tangent, x.half)


class MPConv(nn.Module):
    """Convolution of (B, I, H, W), or with kernel 0 a linear layer of (B, I), whose weights have unit length (Eq. 47).

    There is no bias; a constant channel of the input takes its place. A linear layer keeps its precision under any
    autocast: such layers carry the noise level, and cost nothing.
    """

    def __init__(self, inputs: int, outputs: int, kernel: int, *, generator: torch.Generator | None = None) -> None:
        super().__init__()
        size = (kernel, kernel) if kernel else ()
        self.weight = nn.Parameter(torch.randn(outputs, inputs, *size, generator=generator))

    def forward(self, x: Value, gain: Tensor | float = 1.0) -> Value:
        """The layer times `gain`, a number or a scalar tensor."""
        w = unit_rows(self.weight) * (gain / math.sqrt(self.weight[0].numel()))
        if w.ndim == 2:
            with full_precision(x.device):
                return linear(x, w)
        return conv2d(x, w, padding=w.shape[-1] // 2)


def unit_rows(weight: Tensor) -> Tensor:
    """Weights (outputs, ...) with root mean square 1 for every output."""
    return unit_magnitude(weight, range(1, weight.ndim))


def unit_weights(*roots: nn.Module) -> list[nn.Parameter]:
    """The weights of layers below some modules that are to have unit length: all but frozen ones."""
    weights = (module.weight for root in roots for module in root.modules() if isinstance(module, MPConv))
    return [weight for weight in weights if isinstance(weight, nn.Parameter) and weight.requires_grad]


@torch.no_grad()
def force_normalisation(weights: Iterable[Tensor]) -> None:
    """Forced weight normalisation (Eq. 66), in place; the trainer does so with all weights before each step.

    EDM2 does it in the forward pass of training. Here every pass of a step meets the same weights, those of the target
    too, and an average of the weights sees them, as there, after the optimiser and before the normalisation.
    """
    for weight in weights:
        if len(weight):  # a worker may hold no row of a small one
            weight.copy_(unit_rows(weight))


class MPFourier(nn.Module):
    """c_noise (B,) -> (B, channels): sqrt(2) cos(2 pi (f c_noise + phi)) (Eq. 75).

    f ~ N(0, bandwidth^2) and phi ~ U(0, 1) are buffers, in radians, and are saved with the weights.
    """

    freqs: Tensor
    phases: Tensor

    def __init__(self, channels: int, *, bandwidth: float = 1.0, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.register_buffer("freqs", 2 * math.pi * bandwidth * torch.randn(channels, generator=generator))
        self.register_buffer("phases", 2 * math.pi * torch.rand(channels, generator=generator))

    def forward(self, c_noise: Value) -> Value:
        angles = each(lambda c: torch.outer(c, self.freqs), c_noise)
        return mul(cos(add(angles, self.phases)), math.sqrt(2))
