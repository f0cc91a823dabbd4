"""ADM, the U-Net of Dhariwal and Nichol (arXiv 2105.05233), as EDM and the public consistency models train it.

The defaults are EDM's network for ImageNet 64 (arXiv 2206.00364, App. F.2). OpenAI's consistency models for LSUN 256
(arXiv 2303.01469) are model_channels 256, channel_mult (1, 1, 2, 2, 4, 4), blocks 2, norm "group", c_noise "log1000".
Layers start as torch makes them and F = 0. `norm: double` is the variant of sCM (arXiv 2410.11081, sec. 4.1).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from torch import nn

from cmcore.config import require
from cmcore.diffusion.inputs import Input
from cmcore.diffusion.precond import Labels, NoiseCoordinate
from cmcore.dual import Value
from cmcore.layers.functions import silu
from cmcore.layers.linear import conv
from cmcore.layers.norms import GroupNorm, NormKind
from cmcore.layers.timestep import TimestepEmbedding
from cmcore.layers.unet import Block, Plan, Style, check_halvings, check_images, climb, way_down, way_up


@dataclass(frozen=True, kw_only=True)
class Config:
    """Shape and constants of the network."""

    c_noise: NoiseCoordinate = "log"
    model_channels: int = 192
    channel_mult: tuple[int, ...] = (1, 2, 3, 4)  # one entry per resolution, each half of the one before
    blocks: int = 3  # residual blocks per resolution
    attention_resolutions: tuple[int, ...] = (32, 16, 8)
    head_channels: int = 64  # of an attention head
    dropout: float = 0.1
    dropout_resolution: int = 0  # the largest resolution with dropout; 0 has no limit
    embedding_mult: int = 4  # width of the modulation vector, in model_channels
    norm: NormKind = "adaptive"  # "group": the modulation only shifts
    norm_eps: float = 1e-5
    group_channels: int = 4  # least number of channels in one of the at most 32 groups of a norm
    augment_dim: int = 0  # entries of the vector that says how an image was augmented

    def __post_init__(self) -> None:
        for key in ("model_channels", "blocks", "head_channels", "embedding_mult", "group_channels"):
            require(getattr(self, key) >= 1, key, "at least 1", getattr(self, key))
        for key in ("augment_dim", "dropout_resolution"):
            require(getattr(self, key) >= 0, key, "at least 0", getattr(self, key))
        require(self.model_channels % 2 == 0, "model_channels", "an even number", self.model_channels)
        mult = self.channel_mult
        require(bool(mult) and min(mult) >= 1, "channel_mult", "at least one factor, each at least 1", mult)
        wide = [self.model_channels * m for m in mult]
        divides = all(w % self.head_channels == 0 for w in wide)
        require(divides, "head_channels", f"a divisor of the channels {wide}", self.head_channels)
        require(0 <= self.dropout < 1, "dropout", "a number in [0, 1)", self.dropout)
        require(self.norm_eps > 0, "norm_eps", "a positive number", self.norm_eps)


class ADM(nn.Module):
    """F(x (B, C, H, W), c_noise (B,), labels (B,), a Condition or None) -> (B, C, H, W)."""

    def __init__(
        self, config: Config, *, channels: int, resolution: int, classes: int, inputs: Sequence[Input] = ()
    ) -> None:
        super().__init__()
        c, base = config, config.model_channels
        self.channels, self.resolution = channels, resolution
        width, levels = base * c.embedding_mult, tuple(base * m for m in c.channel_mult)
        self.embedding = TimestepEmbedding(base, width, classes=classes, augment_dim=c.augment_dim, inputs=inputs)
        plan = Plan(
            resolution=resolution,
            channels=levels[0],
            levels=levels,
            blocks=c.blocks,
            attention_resolutions=c.attention_resolutions,
        )
        style = Style(
            width=width,
            norm=c.norm,
            norm_eps=c.norm_eps,
            group_channels=c.group_channels,
            dropout=c.dropout,
            dropout_resolution=c.dropout_resolution,
            head_channels=c.head_channels,
            init="uniform",
        )
        self.input = conv(channels, levels[0], 3, init="uniform")
        block = partial(Block, style=style)
        self.encoder, skips = way_down(plan, block)
        self.decoder, wide = way_up(plan, block, skips)
        self.norm = GroupNorm(wide, groups=style.groups(wide), eps=c.norm_eps)
        self.output = conv(wide, channels, 3, gain=0.0, init="uniform")

    def forward(self, x: Value, c_noise: Value, labels: Labels = None) -> Value:
        check_images(x, self.channels, self.resolution)
        e = self.embedding(c_noise, labels)
        h = self.input(x)
        skips = [h]
        for layer in self.encoder.values():
            h = layer(h, e)
            skips.append(h)
        return self.output(silu(self.norm(climb(self.decoder, h, skips, e))))


def build(config: Config, *, channels: int, resolution: int, classes: int, inputs: Sequence[Input] = ()) -> ADM:
    """The network for images (channels, resolution, resolution); classes=0 means unconditional.

    `inputs` are those that the method declares beside images, noise levels and labels.

    Raises:
        ValueError: the resolution cannot be halved as often as channel_mult asks.
    """
    check_halvings(resolution, len(config.channel_mult))
    return ADM(config, channels=channels, resolution=resolution, classes=classes, inputs=inputs)
