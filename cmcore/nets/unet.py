"""U-Nets of the DDPM++ and NCSN++ family (arXiv 2011.13456), as EDM trains them (arXiv 2206.00364, App. F.2).

The defaults are EDM's DDPM++ for CIFAR-10. F = 0 at the start: the last convolution is zero, where EDM has a gain of
1e-5. `norm: double` with the positional embedding is the variant of sCM (arXiv 2410.11081, sec. 4.1).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

from torch import nn

from cmcore.config import require
from cmcore.diffusion.inputs import Input
from cmcore.diffusion.precond import Labels, NoiseCoordinate
from cmcore.diffusion.words import Text, Words
from cmcore.dual import Value, add, each, mul
from cmcore.layers.embeddings import EmbeddingKind, NoiseEmbedding
from cmcore.layers.functions import silu
from cmcore.layers.linear import conv
from cmcore.layers.norms import GroupNorm, NormKind
from cmcore.layers.resample import Resample
from cmcore.layers.text import caption_encoder
from cmcore.layers.unet import Block, Plan, Style, check_halvings, check_images, climb, way_down, way_up

Encoder = Literal["standard", "residual"]


@dataclass(frozen=True, kw_only=True)
class Config:
    """Shape and constants of the network."""

    c_noise: NoiseCoordinate = "log"
    model_channels: int = 128
    channel_mult: tuple[int, ...] = (2, 2, 2)  # one entry per resolution, each half of the one before
    blocks: int = 4  # residual blocks per resolution
    attention_resolutions: tuple[int, ...] = (16,)
    heads: int = 1
    dropout: float = 0.13
    dropout_resolution: int = 0  # the largest resolution with dropout; 0 has no limit
    embedding: EmbeddingKind = "positional"
    fourier_scale: float = 16.0
    noise_mult: int = 1  # features of c_noise, in model_channels; NCSN++ has 2
    embedding_mult: int = 4  # width of the modulation vector, in model_channels
    norm: NormKind = "group"
    norm_eps: float = 1e-6
    skip_scale: float = math.sqrt(0.5)
    resample_filter: tuple[int, ...] = (1, 1)  # NCSN++ has (1, 3, 3, 1)
    encoder: Encoder = "standard"  # NCSN++ has "residual": each level also sees the image, filtered down
    resample_proj: bool = True  # a 1x1 convolution on the skip of resampling blocks
    residual_gain: float = 1e-5  # initial gain of the convolution that closes a residual branch
    attention_gain: float = math.sqrt(0.2)
    patch: int = 1  # side of the square of pixels that is one position of the network
    augment_dim: int = 0  # entries of the vector that says how an image was augmented; EDM has 9

    def __post_init__(self) -> None:
        for key in ("patch", "model_channels", "blocks", "heads", "noise_mult", "embedding_mult"):
            require(getattr(self, key) >= 1, key, "at least 1", getattr(self, key))
        for key in ("augment_dim", "dropout_resolution"):
            require(getattr(self, key) >= 0, key, "at least 0", getattr(self, key))
        require(self.model_channels % 2 == 0, "model_channels", "an even number", self.model_channels)
        mult = self.channel_mult
        require(bool(mult) and min(mult) >= 1, "channel_mult", "at least one factor, each at least 1", mult)
        wide = [self.model_channels * m for m in mult]
        require(all(w % self.heads == 0 for w in wide), "heads", f"a divisor of the channels {wide}", self.heads)
        require(0 <= self.dropout < 1, "dropout", "a number in [0, 1)", self.dropout)
        for key in ("fourier_scale", "norm_eps", "skip_scale"):
            require(getattr(self, key) > 0, key, "a positive number", getattr(self, key))
        taps = self.resample_filter
        even = len(taps) >= 2 and len(taps) % 2 == 0
        require(even and sum(taps) > 0, "resample_filter", "an even number of taps with a positive sum", taps)


class FilteredDown(nn.Module):
    """A 3x3 convolution, then the filter that halves the resolution; the border is added once, for both."""

    def __init__(self, inputs: int, outputs: int, taps: tuple[int, ...]) -> None:
        super().__init__()
        self.conv = conv(inputs, outputs, 3)
        self.conv.padding = (1 + (len(taps) - 1) // 2,) * 2
        self.down = Resample(taps, up=False, padded=True)

    def forward(self, x: Value) -> Value:
        return self.down(self.conv(x))


class UNet(nn.Module):
    """F(x (B, C, H, W), c_noise (B,), labels (B,), a Condition or None) -> (B, C, H, W).

    With `words`, labels are rows of words, or numbers of encoded captions, brought to the width of the modulation
    vector: where there is attention, every position also attends to them.
    """

    def __init__(
        self, config: Config, *, channels: int, resolution: int, classes: int, inputs: Sequence[Input] = (),
        words: Words | Text | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        c, base = config, config.model_channels
        self.channels, self.resolution, self.patch = channels, resolution, c.patch
        channels, resolution = channels * c.patch**2, resolution // c.patch
        self.embedding = NoiseEmbedding(
            base * c.noise_mult,
            base * c.embedding_mult,
            kind=c.embedding,
            fourier_scale=c.fourier_scale,
            classes=classes,
            augment_dim=c.augment_dim,
            inputs=inputs,
            words=base * c.embedding_mult if words else 0,
        )
        plan = Plan(
            resolution=resolution,
            channels=base,
            levels=tuple(base * m for m in c.channel_mult),
            blocks=c.blocks,
            attention_resolutions=c.attention_resolutions,
            attend_up=False,
        )
        block = partial(Block, style=_style(config, words))
        self.input = conv(channels, base, 3)
        self.encoder, skips = way_down(plan, block)
        self.residual = _residual(plan, channels, c.resample_filter) if c.encoder == "residual" else nn.ModuleDict()
        self.decoder, wide = way_up(plan, block, skips)
        self.norm = GroupNorm(wide, eps=c.norm_eps)
        self.output = conv(wide, channels, 3, gain=0.0)
        self.words = caption_encoder(words, base * c.embedding_mult) if words else None

    def forward(self, x: Value, c_noise: Value, labels: Labels = None) -> Value:
        check_images(x, self.channels, self.resolution)
        words = None
        if self.words is not None:
            words, labels = self.words(labels)
        e = self.embedding(c_noise, labels, words)
        given = (e,) if words is None else (e, words)
        x = x if self.patch == 1 else each(lambda x: nn.functional.pixel_unshuffle(x, self.patch), x)
        h, seen = self.input(x), x
        skips = [h]
        for name, layer in self.encoder.items():
            h = layer(h, *given)
            if name in self.residual:
                h = seen = mul(add(h, self.residual[name](seen)), math.sqrt(0.5))
            skips.append(h)
        x = self.output(silu(self.norm(climb(self.decoder, h, skips, *given))))
        return x if self.patch == 1 else each(lambda x: nn.functional.pixel_shuffle(x, self.patch), x)


def _style(c: Config, words: Words | Text | None) -> Style:
    return Style(
        width=c.model_channels * c.embedding_mult,
        norm=c.norm,
        norm_eps=c.norm_eps,
        dropout=c.dropout,
        dropout_resolution=c.dropout_resolution,
        heads=c.heads,
        skip_scale=c.skip_scale,
        taps=c.resample_filter,
        project=c.resample_proj,
        residual_gain=c.residual_gain,
        attention_gain=c.attention_gain,
        words=c.model_channels * c.embedding_mult if words else 0,
    )


def _residual(plan: Plan, channels: int, taps: tuple[int, ...]) -> nn.ModuleDict:
    """NCSN++: after each halving the image, or what was made of it one level above, comes in once more."""
    layers, now = nn.ModuleDict(), channels
    for level, outputs in enumerate(plan.levels[:-1], start=1):
        size = plan.resolution >> level
        layers[f"{size}x{size}_down"] = FilteredDown(now, outputs, taps)
        now = outputs
    return layers


def build(
    config: Config, *, channels: int, resolution: int, classes: int, inputs: Sequence[Input] = (),
    words: Words | Text | None = None,
) -> UNet:  # fmt: skip
    """The network for images (channels, resolution, resolution); without classes and words it is unconditional.

    `inputs` are those that the method declares beside images, noise levels and labels.

    Raises:
        ValueError: the resolution is no multiple of the patch, or cannot be halved as often as channel_mult asks.
    """
    if resolution % config.patch:
        raise ValueError(f"patch: expected a divisor of the resolution {resolution}, got {config.patch}")
    check_halvings(resolution // config.patch, len(config.channel_mult))
    return UNet(config, channels=channels, resolution=resolution, classes=classes, inputs=inputs, words=words)
