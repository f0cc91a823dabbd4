"""U-Net of the DDPM++ family (Song et al., arXiv 2011.13456), in the form that EDM trains (arXiv 2206.00364, App. F.2).

The defaults are EDM's CIFAR-10 network. F = 0 at the start: the last convolution is zero, where EDM has a gain of 1e-5.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from cmcore.config import require
from cmcore.diffusion.precond import Labels, NoiseCoordinate
from cmcore.nets.layers import (
    Attention,
    EmbeddingKind,
    GroupNorm,
    ModulatedNorm,
    NoiseEmbedding,
    NormKind,
    Resample,
    conv,
)


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
    embedding: EmbeddingKind = "positional"
    fourier_scale: float = 16.0
    noise_mult: int = 1  # features of c_noise, in model_channels; NCSN++ has 2
    embedding_mult: int = 4  # width of the modulation vector, in model_channels
    norm: NormKind = "group"
    norm_eps: float = 1e-6
    skip_scale: float = math.sqrt(0.5)
    resample_filter: tuple[int, ...] = (1, 1)  # NCSN++ has (1, 3, 3, 1)
    resample_proj: bool = True  # a 1x1 convolution on the skip of resampling blocks
    residual_gain: float = 1e-5  # initial gain of the convolution that closes a residual branch
    attention_gain: float = math.sqrt(0.2)
    augment_dim: int = 0  # entries of the vector that says how an image was augmented; EDM has 9

    def __post_init__(self) -> None:
        for key in ("model_channels", "blocks", "heads", "noise_mult", "embedding_mult"):
            require(getattr(self, key) >= 1, key, "at least 1", getattr(self, key))
        require(self.augment_dim >= 0, "augment_dim", "at least 0", self.augment_dim)
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


class Block(nn.Module):
    """Residual block: norm, SiLU, (resample,) conv, modulated norm, SiLU, dropout, conv; then attention where asked."""

    def __init__(
        self, inputs: int, outputs: int, embedding: int, config: Config, *, attention: bool = False, resample: str = ""
    ) -> None:
        super().__init__()
        c = config
        self.outputs, self.skip_scale, self.dropout = outputs, c.skip_scale, c.dropout
        self.resample = Resample(c.resample_filter, up=resample == "up") if resample else None
        self.norm0 = GroupNorm(inputs, eps=c.norm_eps)
        self.conv0 = conv(inputs, outputs, 3)
        self.norm1 = ModulatedNorm(outputs, embedding, c.norm, eps=c.norm_eps)
        self.conv1 = conv(outputs, outputs, 3, gain=c.residual_gain)
        project = inputs != outputs or (resample and c.resample_proj)
        self.skip = conv(inputs, outputs, 1) if project else None
        gains = {"gain": c.attention_gain, "out_gain": c.residual_gain}
        self.attention = (
            Attention(outputs, heads=c.heads, skip_scale=c.skip_scale, eps=c.norm_eps, **gains) if attention else None
        )

    def forward(self, x: Tensor, e: Tensor) -> Tensor:
        h = nn.functional.silu(self.norm0(x))
        if self.resample is not None:
            h, x = self.resample(h), self.resample(x)
        h = nn.functional.silu(self.norm1(self.conv0(h), e))
        if self.training and self.dropout:
            h = nn.functional.dropout(h, self.dropout)
        x = ((x if self.skip is None else self.skip(x)) + self.conv1(h)) * self.skip_scale
        return x if self.attention is None else self.attention(x)


class UNet(nn.Module):
    """F(x (B, C, H, W), c_noise (B,), labels (B,), a Condition or None) -> (B, C, H, W)."""

    def __init__(self, config: Config, *, channels: int, resolution: int, classes: int) -> None:
        super().__init__()
        self.channels, self.resolution = channels, resolution
        width = config.model_channels * config.embedding_mult
        self.embedding = NoiseEmbedding(
            config.model_channels * config.noise_mult,
            width,
            kind=config.embedding,
            fourier_scale=config.fourier_scale,
            classes=classes,
            augment_dim=config.augment_dim,
        )

        def block(inputs: int, outputs: int, *, attention: bool = False, resample: str = "") -> Block:
            return Block(inputs, outputs, width, config, attention=attention, resample=resample)

        self.input = conv(channels, config.model_channels, 3)
        self.encoder, skips = _encoder(config, resolution, block)
        self.decoder, wide = _decoder(config, resolution, block, skips)
        self.norm = GroupNorm(wide, eps=config.norm_eps)
        self.output = conv(wide, channels, 3, gain=0.0)

    def forward(self, x: Tensor, c_noise: Tensor, labels: Labels = None) -> Tensor:
        if x.shape[1:] != (self.channels, self.resolution, self.resolution):
            expected = f"(B, {self.channels}, {self.resolution}, {self.resolution})"
            raise ValueError(f"images: expected shape {expected}, got {tuple(x.shape)}")
        e = self.embedding(c_noise, labels)
        h = self.input(x)
        skips = [h]
        for layer in self.encoder.values():
            h = layer(h, e)
            skips.append(h)
        for name, layer in self.decoder.items():
            h = layer(torch.cat([h, skips.pop()], dim=1) if "_block" in name else h, e)
        return self.output(nn.functional.silu(self.norm(h)))


def _encoder(config: Config, resolution: int, block: Callable[..., Block]) -> tuple[nn.ModuleDict, list[int]]:
    """The way down, and the channels that it leaves for the way up."""
    layers, now = nn.ModuleDict(), config.model_channels
    skips = [now]
    for level, mult in enumerate(config.channel_mult):
        size = resolution >> level
        if level:
            layers[f"{size}x{size}_down"] = block(now, now, resample="down")
            skips.append(now)
        for index in range(config.blocks):
            attention = size in config.attention_resolutions
            layers[f"{size}x{size}_block{index}"] = block(now, config.model_channels * mult, attention=attention)
            now = config.model_channels * mult
            skips.append(now)
    return layers, skips


def _decoder(
    config: Config, resolution: int, block: Callable[..., Block], skips: list[int]
) -> tuple[nn.ModuleDict, int]:
    """The way up, and its final number of channels. Each `block` is also given its mirror image's output."""
    layers, now, skips = nn.ModuleDict(), skips[-1], list(skips)
    for level, mult in reversed(list(enumerate(config.channel_mult))):
        size = resolution >> level
        if level == len(config.channel_mult) - 1:
            layers[f"{size}x{size}_in0"] = block(now, now, attention=True)
            layers[f"{size}x{size}_in1"] = block(now, now)
        else:
            layers[f"{size}x{size}_up"] = block(now, now, resample="up")
        for index in range(config.blocks + 1):
            attention = index == config.blocks and size in config.attention_resolutions
            layers[f"{size}x{size}_block{index}"] = block(
                now + skips.pop(), config.model_channels * mult, attention=attention
            )
            now = config.model_channels * mult
    return layers, now


def build(config: Config, *, channels: int, resolution: int, classes: int) -> UNet:
    """The network for images (channels, resolution, resolution); classes=0 means unconditional.

    Raises:
        ValueError: the resolution cannot be halved as often as channel_mult asks.
    """
    halvings = len(config.channel_mult) - 1
    if resolution % 2**halvings:
        raise ValueError(
            f"resolution: channel_mult halves {halvings} times: expected a multiple of {2**halvings}, got {resolution}"
        )
    return UNet(config, channels=channels, resolution=resolution, classes=classes)
