"""Halving and doubling of the resolution by a filter."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from cmcore.dual import Value, each


class Resample(nn.Module):
    """Halve or double the resolution of (B, C, H, W) with a separable filter; taps (1, 1) average or repeat pixels.

    `padded` says that the images already have the border that a longer filter needs on the way down.
    """

    kernel: Tensor

    def __init__(self, taps: Sequence[float], *, up: bool, padded: bool = False) -> None:
        super().__init__()
        f = torch.tensor(taps, dtype=torch.get_default_dtype())
        f = f / f.sum()
        self.up, self.padding = up, 0 if padded else (len(taps) - 1) // 2
        self.box = len(taps) == 2 and taps[0] == taps[1]
        self.register_buffer("kernel", torch.outer(f, f)[None, None] * (4 if up else 1), persistent=False)

    def forward(self, x: Value) -> Value:
        return each(self._resized, x)

    def _resized(self, x: Tensor) -> Tensor:
        if self.box:
            return (
                nn.functional.interpolate(x, scale_factor=2, mode="nearest")
                if self.up
                else nn.functional.avg_pool2d(x, 2)
            )
        kernel = self.kernel.to(x.dtype).expand(x.shape[1], -1, -1, -1)
        resize = nn.functional.conv_transpose2d if self.up else nn.functional.conv2d
        return resize(x, kernel, stride=2, padding=self.padding, groups=x.shape[1])
