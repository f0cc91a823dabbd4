"""The ways down and up that all U-Nets share, and the blocks of DDPM++, NCSN++ and ADM (arXiv 2206.00364, App. F.2).

A `Plan` says where the blocks of a network are, a `Style` what those of the three are like. Images inside are
(B, C, H, W), modulation vectors e are (B, E).
"""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, nn

from cmcore.dual import Value, add, each, mul
from cmcore.layers.attention import attend
from cmcore.layers.functions import cat, dropout, silu
from cmcore.layers.linear import InitKind, conv, linear
from cmcore.layers.norms import GroupNorm, ModulatedNorm, NormKind, group_count
from cmcore.layers.resample import Resample


@dataclass(frozen=True, kw_only=True)
class Style:
    """The settings that the blocks of a network share."""

    width: int  # of the modulation vector
    norm: NormKind
    norm_eps: float
    group_channels: int = 4  # least number of channels in a normalisation group
    dropout: float
    dropout_resolution: int = 0  # the largest one with dropout; 0 has no limit
    heads: int = 0  # of attention; 0: as many as head_channels makes
    head_channels: int = 64
    skip_scale: float = 1.0
    taps: tuple[int, ...] = (1, 1)  # of the resampling filter
    project: bool = False  # a 1x1 convolution on the skip of resampling blocks
    init: InitKind = "xavier"
    residual_gain: float = 0.0  # initial gain of the convolution that closes a residual branch
    attention_gain: float = 1.0
    words: int = 0  # width of encoded words, which blocks with attention read; 0: none

    def groups(self, channels: int) -> int:
        """Normalisation groups for so many channels."""
        return group_count(channels, least_channels=self.group_channels)


class Attention(nn.Module):
    """Residual self-attention over the positions of (B, C, H, W)."""

    def __init__(self, channels: int, style: Style) -> None:
        super().__init__()
        self.heads, self.skip_scale = style.heads or channels // style.head_channels, style.skip_scale
        self.norm = GroupNorm(channels, groups=style.groups(channels), eps=style.norm_eps)
        self.qkv = conv(channels, 3 * channels, 1, gain=style.attention_gain, init=style.init)
        self.out = conv(channels, channels, 1, gain=style.residual_gain, init=style.init)

    def forward(self, x: Value) -> Value:
        batch, channels, height, width = x.shape
        qkv = self.qkv(self.norm(x)).reshape(batch, self.heads, 3, channels // self.heads, height * width)
        q, k, v = (each(_side_by_side, part) for part in qkv.mT.unbind(2))
        return mul(add(x, self.out(attend(q, k, v).mT.reshape(x.shape))), self.skip_scale)


class CrossAttention(nn.Module):
    """Residual attention from the positions of (B, C, H, W) to encoded words (B, L, D) (arXiv 2112.10752, sec. 3.3)."""

    def __init__(self, channels: int, style: Style) -> None:
        super().__init__()
        self.heads, self.skip_scale = style.heads or channels // style.head_channels, style.skip_scale
        self.norm = GroupNorm(channels, groups=style.groups(channels), eps=style.norm_eps)
        self.q = conv(channels, channels, 1, gain=style.attention_gain, init=style.init)
        self.kv = linear(style.words, 2 * channels, gain=style.attention_gain, init=style.init)
        self.out = conv(channels, channels, 1, gain=style.residual_gain, init=style.init)

    def forward(self, x: Value, words: Tensor) -> Value:
        batch, channels, height, width = x.shape
        q = self.q(self.norm(x)).reshape(batch, self.heads, channels // self.heads, height * width).mT
        k, v = self.kv(words).reshape(batch, -1, 2, self.heads, channels // self.heads).transpose(1, 3).unbind(2)
        return mul(add(x, self.out(attend(each(_side_by_side, q), k, v).mT.reshape(x.shape))), self.skip_scale)


def _side_by_side(part: Tensor) -> Tensor:
    """With the channels of a position side by side, as they are in channels_last: fused kernels want it."""
    return part if part.stride(-1) == 1 else part.contiguous()


class Block(nn.Module):
    """Residual block: norm, SiLU, (resample,) conv, modulated norm, SiLU, dropout, conv; then attention where asked.

    Attention is among the positions, then from them to encoded words (B, L, D) where there are some.
    """

    def __init__(
        self, inputs: int, outputs: int, size: int, style: Style, *, attention: bool = False, resample: str = ""
    ) -> None:
        super().__init__()
        s, eps = style, style.norm_eps
        self.skip_scale = s.skip_scale
        self.dropout = s.dropout if not s.dropout_resolution or size <= s.dropout_resolution else 0.0
        self.resample = Resample(s.taps, up=resample == "up") if resample else None
        self.norm0 = GroupNorm(inputs, groups=s.groups(inputs), eps=eps)
        self.conv0 = conv(inputs, outputs, 3, init=s.init)
        self.norm1 = ModulatedNorm(outputs, s.width, s.norm, groups=s.groups(outputs), eps=eps, init=s.init)
        self.conv1 = conv(outputs, outputs, 3, gain=s.residual_gain, init=s.init)
        project = inputs != outputs or (resample and s.project)
        self.skip = conv(inputs, outputs, 1, init=s.init) if project else None
        self.attention = Attention(outputs, style) if attention else None
        self.reading = CrossAttention(outputs, style) if attention and style.words else None

    def forward(self, x: Value, e: Value, words: Tensor | None = None) -> Value:
        h = silu(self.norm0(x))
        if self.resample is not None:
            h, x = self.resample(h), self.resample(x)
        h = silu(self.norm1(self.conv0(h), e))
        if self.training and self.dropout:
            h = dropout(h, self.dropout)
        x = mul(add(x if self.skip is None else self.skip(x), self.conv1(h)), self.skip_scale)
        x = x if self.attention is None else self.attention(x)
        return x if self.reading is None or words is None else self.reading(x, words)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Where the resolutions and channels are: `channels` at the input, then those of each level."""

    resolution: int
    channels: int
    levels: tuple[int, ...]  # channels per resolution, each half of the one before
    blocks: int  # residual blocks per resolution
    attention_resolutions: tuple[int, ...]
    attend_up: bool = True  # whether every block of those resolutions attends on the way up, or the last one only


MakeBlock = Callable[..., nn.Module]
"""(inputs, outputs, size, attention=False, resample="") -> a block."""


def way_down(plan: Plan, block: MakeBlock) -> tuple[nn.ModuleDict, list[int]]:
    """The way down, and the channels that it leaves for the way up."""
    layers, now = nn.ModuleDict(), plan.channels
    skips = [now]
    for level, channels in enumerate(plan.levels):
        size = plan.resolution >> level
        if level:
            layers[f"{size}x{size}_down"] = block(now, now, size, resample="down")
            skips.append(now)
        for index in range(plan.blocks):
            attention = size in plan.attention_resolutions
            layers[f"{size}x{size}_block{index}"] = block(now, channels, size, attention=attention)
            now = channels
            skips.append(now)
    return layers, skips


def way_up(plan: Plan, block: MakeBlock, skips: list[int]) -> tuple[nn.ModuleDict, int]:
    """The way up, and its final number of channels. Each `block` is also given its mirror image's output."""
    layers, now, skips = nn.ModuleDict(), skips[-1], list(skips)
    for level, channels in reversed(list(enumerate(plan.levels))):
        size = plan.resolution >> level
        if level == len(plan.levels) - 1:
            layers[f"{size}x{size}_in0"] = block(now, now, size, attention=True)
            layers[f"{size}x{size}_in1"] = block(now, now, size)
        else:
            layers[f"{size}x{size}_up"] = block(now, now, size, resample="up")
        for index in range(plan.blocks + 1):
            attention = size in plan.attention_resolutions and (plan.attend_up or index == plan.blocks)
            name = f"{size}x{size}_block{index}"
            layers[name] = block(now + skips.pop(), channels, size, attention=attention)
            now = channels
    return layers, now


def climb(layers: nn.ModuleDict, h: Value, skips: list[Value], *seen: Value) -> Value:
    """Walk the way up with what the way down has left; `seen` is what every block is given beside."""
    for name, layer in layers.items():
        h = layer(cat([h, skips.pop()]) if "_block" in name else h, *seen)
    return h


def check_images(x: Value, channels: int, resolution: int) -> None:
    """A ValueError where x is not (B, channels, resolution, resolution)."""
    if x.shape[1:] != (channels, resolution, resolution):
        expected = f"(B, {channels}, {resolution}, {resolution})"
        raise ValueError(f"images: expected shape {expected}, got {tuple(x.shape)}")


def check_halvings(resolution: int, levels: int) -> None:
    """A ValueError where the resolution cannot be halved from level to level."""
    if resolution % 2 ** (levels - 1):
        least = 2 ** (levels - 1)
        raise ValueError(
            f"resolution: channel_mult halves {levels - 1} times: expected a multiple of {least}, got {resolution}"
        )
