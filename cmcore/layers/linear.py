"""Linear layers and convolutions with their initial weights: by default those of EDM's DDPM++ (arXiv 2206.00364)."""

from typing import Any, Literal, TypeVar

import torch
from torch import nn

from cmcore.dual import Value
from cmcore.layers import functions

InitKind = Literal["xavier", "uniform"]
Layer = TypeVar("Layer", nn.Linear, nn.Conv2d)


class Linear(nn.Linear):
    """`torch.nn.Linear`, of Duals too."""

    def forward(self, input: Value) -> Any:  # the base class's name
        return functions.linear(input, self.weight, self.bias)


class Conv2d(nn.Conv2d):
    """`torch.nn.Conv2d`, of Duals too."""

    def forward(self, input: Value) -> Any:  # the base class's name
        options = {"stride": self.stride, "padding": self.padding, "dilation": self.dilation, "groups": self.groups}
        return functions.conv2d(input, self.weight, self.bias, **options)


def linear(inputs: int, outputs: int, *, gain: float = 1.0, bias: bool = True, init: InitKind = "xavier") -> nn.Linear:
    """A linear layer with or without a bias, initialised as `initialised` says."""
    return initialised(Linear(inputs, outputs, bias), gain, init)


def conv(inputs: int, outputs: int, kernel: int, *, gain: float = 1.0, init: InitKind = "xavier") -> nn.Conv2d:
    """A convolution that keeps the resolution, initialised as `initialised` says."""
    return initialised(Conv2d(inputs, outputs, kernel, padding=kernel // 2), gain, init)


def initialised(layer: Layer, gain: float, init: InitKind) -> Layer:
    """A new layer with its initial weights.

    - "xavier": Xavier-uniform weights times `gain`, biases zero;
    - "uniform": weights and biases uniform in [-gain, gain]/sqrt(inputs), as ADM has them.
    """
    if init == "xavier":
        nn.init.xavier_uniform_(layer.weight, gain)
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)
    elif gain != 1:  # with a gain of 1 it is how torch makes a layer
        with torch.no_grad():
            for parameter in layer.parameters():
                parameter.mul_(gain)
    return layer
