"""The embedding of noise levels and labels that ADM (arXiv 2105.05233) and DiT (arXiv 2212.09748) share."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from cmcore.diffusion.inputs import Input
from cmcore.diffusion.precond import Labels
from cmcore.dual import Value, add, each
from cmcore.layers.embeddings import InputEmbedding, ZeroEmbedding, condition_vectors
from cmcore.layers.functions import cat, cos, silu, sin
from cmcore.layers.linear import linear


class TimestepFeatures(nn.Module):
    """c_noise (B,) -> (B, channels): cosines, then sines, at frequencies from 1 down to almost 1/10000.

    The frequencies are computed in float32, as those that the public networks were trained with: at a c_noise of a
    thousand the last bit of a frequency shows.
    """

    freqs: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        half = channels // 2
        freqs = torch.exp(-math.log(10_000) * torch.arange(half, dtype=torch.float32) / half)
        self.register_buffer("freqs", freqs.to(torch.get_default_dtype()), persistent=False)

    def forward(self, c_noise: Value) -> Value:
        angles = each(lambda c: torch.outer(c, self.freqs), c_noise)
        return cat([cos(angles), sin(angles)])


class TimestepEmbedding(nn.Module):
    """(c_noise (B,), labels (B,), a Condition or None) -> modulation vector e (B, width); labels come in last."""

    def __init__(self, features: int, width: int, *, classes: int, augment_dim: int, inputs: Sequence[Input]) -> None:
        super().__init__()
        self.classes, self.augment_dim = classes, augment_dim
        self.features = TimestepFeatures(features)
        self.augment = linear(augment_dim, features, gain=0.0, bias=False, init="uniform") if augment_dim else None
        self.layer0, self.layer1 = linear(features, width, init="uniform"), linear(width, width, init="uniform")
        self.label = nn.Linear(classes, width, bias=False) if classes else None
        if self.label is not None:
            nn.init.normal_(self.label.weight)
        self.inputs = InputEmbedding(inputs, lambda: ZeroEmbedding(features, features, init="uniform"))

    def forward(self, c_noise: Value, labels: Labels) -> Value:
        hot, augment = condition_vectors(c_noise, labels, classes=self.classes, augment_dim=self.augment_dim)
        e = self.features(c_noise)
        if self.augment is not None and augment is not None:
            e = add(e, self.augment(augment))
        e = self.inputs(e, c_noise, labels)
        e = self.layer1(silu(self.layer0(e)))
        if self.label is not None and hot is not None:
            e = add(e, self.label(hot))
        return silu(e)
