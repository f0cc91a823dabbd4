"""Convolution with a forward-mode derivative that costs one convolution."""

from typing import Any

from torch import Tensor, nn
from torch.autograd import forward_ad


def has_tangent(x: Tensor) -> bool:
    """Whether x carries a forward-mode derivative, as everything does that comes from the inputs of torch.func.jvp."""
    return forward_ad.unpack_dual(x).tangent is not None


def conv2d(x: Tensor, weight: Tensor, bias: Tensor | None = None, **options: Any) -> Tensor:
    """`torch.nn.functional.conv2d`. Of x's derivative PyTorch also convolves x with that of the weights, all zeros."""
    value, tangent = forward_ad.unpack_dual(x)
    if tangent is None or has_tangent(weight):
        return nn.functional.conv2d(x, weight, bias, **options)
    change = nn.functional.conv2d(tangent, weight, **options)
    return forward_ad.make_dual(nn.functional.conv2d(value, weight, bias, **options), change)


class Conv2d(nn.Conv2d):
    """`torch.nn.Conv2d` by `conv2d`."""

    def forward(self, input: Tensor) -> Tensor:  # the base class's name
        options = {"stride": self.stride, "padding": self.padding, "dilation": self.dilation, "groups": self.groups}
        return conv2d(input, self.weight, self.bias, **options)
