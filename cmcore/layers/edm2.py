"""Parts of the EDM2 network (Karras et al., arXiv 2312.02696, config G) that are not in layers/magnitude.py.

Every part keeps the magnitude of what goes through it, works out of place and takes Duals.
"""

import math
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import nn

from cmcore.diffusion.inputs import Input
from cmcore.diffusion.precond import Labels
from cmcore.dual import Value, add, each, mul
from cmcore.layers.attention import attend
from cmcore.layers.embeddings import EmbeddingKind, InputEmbedding, PositionalFeatures, condition_vectors
from cmcore.layers.functions import cat, clamp, dropout, silu
from cmcore.layers.magnitude import MPConv, MPFourier, unit_magnitude
from cmcore.layers.norms import pixel_norm
from cmcore.layers.resample import Resample

SILU_MAGNITUDE = 0.596  # root mean square of silu(z) for z ~ N(0, 1)
ModulationKind = Literal["gain", "double"]


def mp_silu(x: Value) -> Any:
    """silu(x) / 0.596 (Eq. 81)."""
    return each(lambda y: y / SILU_MAGNITUDE, silu(x))


def mp_sum(a: Value, b: Value, t: float) -> Any:
    """((1 - t) a + t b) / sqrt((1 - t)^2 + t^2) (Eq. 88)."""
    return each(lambda a, b: torch.lerp(a, b, t) / math.hypot(1 - t, t), a, b)


def mp_cat(a: Value, b: Value, t: float) -> Any:
    """Channels of a, then those of b, in which b has the share t of the whole, however many they are (Eq. 103)."""
    whole = math.sqrt(a.shape[1] + b.shape[1]) / math.hypot(1 - t, t)
    return cat([mul(a, whole * (1 - t) / math.sqrt(a.shape[1])), mul(b, whole * t / math.sqrt(b.shape[1]))])


class Positional(nn.Module):
    """DDPM++'s positional features times sqrt(2), so that their root mean square is 1."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.features = PositionalFeatures(channels)

    def forward(self, c_noise: Value) -> Value:
        return mul(self.features(c_noise), math.sqrt(2))


class MPZeroEmbedding(nn.Module):
    """(B,) -> (B, width): positional features, then a layer of unit weights whose gain is zero at first."""

    def __init__(self, features: int, width: int) -> None:
        super().__init__()
        self.features = Positional(features)
        self.layer = MPConv(features, width, 0)
        self.gain = nn.Parameter(torch.zeros(()))

    def forward(self, value: Value) -> Value:
        return self.layer(self.features(value), self.gain)


class Embedding(nn.Module):
    """(c_noise (B,), labels (B,), a Condition or None) -> modulation vector e (B, width)."""

    def __init__(
        self,
        features: int,
        width: int,
        *,
        kind: EmbeddingKind,
        bandwidth: float,
        classes: int,
        label_balance: float,
        inputs: Sequence[Input] = (),
    ) -> None:
        super().__init__()
        self.classes, self.label_balance = classes, label_balance
        self.features = MPFourier(features, bandwidth=bandwidth) if kind == "fourier" else Positional(features)
        self.noise = MPConv(features, width, 0)
        self.label = MPConv(classes, width, 0) if classes else None
        self.inputs = InputEmbedding(inputs, lambda: MPZeroEmbedding(features, width))

    def forward(self, c_noise: Value, labels: Labels) -> Value:
        hot, _ = condition_vectors(c_noise, labels, classes=self.classes)
        e = self.inputs(self.noise(self.features(c_noise)), c_noise, labels)
        if self.label is not None and hot is not None:
            e = mp_sum(e, self.label(hot * math.sqrt(self.classes)), self.label_balance)
        return mp_silu(e)


class CosineAttention(nn.Module):
    """Residual self-attention over the positions of (B, C, H, W), with q, k and v of unit magnitude (App. B.3)."""

    def __init__(self, channels: int, *, head_channels: int, balance: float) -> None:
        super().__init__()
        self.heads, self.balance = channels // head_channels, balance
        self.qkv = MPConv(channels, 3 * channels, 1)
        self.out = MPConv(channels, channels, 1)

    def forward(self, x: Value) -> Value:
        batch, channels, height, width = x.shape
        qkv = self.qkv(x).reshape(batch, self.heads, channels // self.heads, 3, height * width)
        q, k, v = (part.mT for part in unit_magnitude(qkv, (2,)).unbind(3))
        return mp_sum(x, self.out(attend(q, k, v).mT.reshape(x.shape)), self.balance)


class Block(nn.Module):
    """Residual block of the way down or up, then attention where asked (Fig. 21).

    On the way down the input is brought to the block's channels and pixel-normalised first; on the way up the residual
    branch reads all its channels, and only the main branch is brought to fewer.

    Args:
        inputs: channels that come in.
        outputs: channels that leave.
        embedding: entries of e.
        down: whether it is a block of the encoder.
        resample: "up", "down" or "".
        attention: channels of a head, 0 for no attention.
        dropout: probability, in training.
        modulation: how e scales the branch. "gain" is EDM2's c = 1 + g W e. "double" is pnorm(c): what sCM's adaptive
            double normalisation (arXiv 2410.11081, sec. 4.1) is for a network whose modulation has no shift and whose
            layers take the place of the first normalisation.
        balance: share of the residual branch in the sum.
        attention_balance: share of the attention in its sum.
        clip: bound of the activations that leave.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        embedding: int,
        *,
        down: bool,
        resample: str,
        attention: int,
        dropout: float,
        modulation: ModulationKind,
        balance: float,
        attention_balance: float,
        clip: float,
    ) -> None:
        super().__init__()
        self.outputs, self.down, self.dropout, self.bounded = outputs, down, dropout, modulation == "double"
        self.balance, self.clip = balance, clip
        self.resample = Resample((1, 1), up=resample == "up") if resample else None
        self.skip = MPConv(inputs, outputs, 1) if inputs != outputs else None
        self.conv0 = MPConv(outputs if down else inputs, outputs, 3)
        self.modulation = MPConv(embedding, outputs, 0)
        self.gain = nn.Parameter(torch.zeros(()))
        self.conv1 = MPConv(outputs, outputs, 3)
        self.attention = (
            CosineAttention(outputs, head_channels=attention, balance=attention_balance) if attention else None
        )

    def forward(self, x: Value, e: Value) -> Value:
        if self.resample is not None:
            x = self.resample(x)
        if self.down:
            x = unit_magnitude(x if self.skip is None else self.skip(x), (1,))
        c = add(self.modulation(e, self.gain), 1)
        c = pixel_norm(c) if self.bounded else c
        y = self.conv0(mp_silu(x))
        y = mp_silu(mul(y, c.to(y.dtype).reshape(*c.shape, 1, 1)))
        if self.training and self.dropout:
            y = dropout(y, self.dropout)
        if not self.down and self.skip is not None:
            x = self.skip(x)
        x = mp_sum(x, self.conv1(y), self.balance)
        x = x if self.attention is None else self.attention(x)
        return clamp(x, self.clip)
