"""Layers that are linear in their input, with a forward-mode derivative that costs one evaluation.

PyTorch's own derivative evaluates them twice: also with the derivative of the weights, which is zero as a rule.
"""

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from torch.autograd import forward_ad


def has_tangent(x: Tensor) -> bool:
    """Whether x carries a forward-mode derivative, as everything does that comes from the inputs of torch.func.jvp."""
    return forward_ad.unpack_dual(x).tangent is not None


def conv2d(x: Tensor, weight: Tensor, bias: Tensor | None = None, **options: Any) -> Tensor:
    """`torch.nn.functional.conv2d`."""
    return _applied(nn.functional.conv2d, x, weight, bias, options)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`torch.nn.functional.linear`."""
    return _applied(nn.functional.linear, x, weight, bias, {})


def _applied(
    function: Callable[..., Tensor], x: Tensor, weight: Tensor, bias: Tensor | None, options: dict[str, Any]
) -> Tensor:
    value, tangent = forward_ad.unpack_dual(x)
    if tangent is None or has_tangent(weight):
        return function(x, weight, bias, **options)
    return forward_ad.make_dual(function(value, weight, bias, **options), function(tangent, weight, **options))


class Linear(nn.Linear):
    """`torch.nn.Linear` by `linear`."""

    def forward(self, input: Tensor) -> Tensor:  # the base class's name
        return linear(input, self.weight, self.bias)


class Conv2d(nn.Conv2d):
    """`torch.nn.Conv2d` by `conv2d`."""

    def forward(self, input: Tensor) -> Tensor:  # the base class's name
        options = {"stride": self.stride, "padding": self.padding, "dilation": self.dilation, "groups": self.groups}
        return conv2d(input, self.weight, self.bias, **options)
