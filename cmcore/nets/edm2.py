"""EDM2's magnitude-preserving U-Net (Karras et al., arXiv 2312.02696, config G), for pixels and for latents.

The defaults are its network S. F = 0 at the start, as the output's gain is zero. The learned scales of the layers are
those of unit weights (layers/magnitude.py), which the trainer keeps at unit length.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import nn

from cmcore.config import require
from cmcore.diffusion.inputs import Input
from cmcore.diffusion.precond import Labels, NoiseCoordinate
from cmcore.dual import Value, value_of
from cmcore.layers.edm2 import Block, Embedding, ModulationKind, mp_cat
from cmcore.layers.embeddings import EmbeddingKind
from cmcore.layers.functions import cat
from cmcore.layers.magnitude import MPConv
from cmcore.layers.unet import Plan, check_halvings, check_images, way_down, way_up


@dataclass(frozen=True, kw_only=True)
class Config:
    """Shape and constants of the network.

    sCM (arXiv 2410.11081, sec. 4.1) trains it with c_noise "trig", embedding "positional" and modulation "double".
    """

    c_noise: NoiseCoordinate = "log"
    model_channels: int = 192
    channel_mult: tuple[int, ...] = (1, 2, 3, 4)  # one entry per resolution, each half of the one before
    blocks: int = 3  # residual blocks per resolution
    attention_resolutions: tuple[int, ...] = (16, 8)
    head_channels: int = 64
    dropout: float = 0.0
    dropout_resolution: int = 0  # the largest resolution that has dropout, 0 for all; 16 in ECT and sCM
    embedding: EmbeddingKind = "fourier"
    fourier_scale: float = 1.0  # bandwidth
    noise_mult: int = 0  # features of c_noise, in model_channels; 0 for channel_mult[0]
    embedding_mult: int = 0  # width of the modulation vector, in model_channels; 0 for the largest channel_mult
    modulation: ModulationKind = "gain"
    label_balance: float = 0.5  # share of the label in the embedding
    concat_balance: float = 0.5  # share of the skip connection in a concatenation
    residual_balance: float = 0.3
    attention_balance: float = 0.3
    clip: float = 256.0  # bound of the activations

    def __post_init__(self) -> None:
        for key in ("model_channels", "blocks", "head_channels"):
            require(getattr(self, key) >= 1, key, "at least 1", getattr(self, key))
        for key in ("dropout_resolution", "noise_mult", "embedding_mult"):
            require(getattr(self, key) >= 0, key, "at least 0", getattr(self, key))
        require(self.model_channels % 2 == 0, "model_channels", "an even number", self.model_channels)
        mult = self.channel_mult
        require(bool(mult) and min(mult) >= 1, "channel_mult", "at least one factor, each at least 1", mult)
        require(0 <= self.dropout < 1, "dropout", "a number in [0, 1)", self.dropout)
        for key in ("label_balance", "concat_balance", "residual_balance", "attention_balance"):
            require(0 < getattr(self, key) < 1, key, "a number between 0 and 1", getattr(self, key))
        for key in ("fourier_scale", "clip"):
            require(getattr(self, key) > 0, key, "a positive number", getattr(self, key))


_CHANNELS = {"xs": 128, "s": 192, "m": 256, "l": 320, "xl": 384, "xxl": 448}
_SIZES = {64: ("s", "m", "l", "xl"), 512: tuple(_CHANNELS)}
# The networks for ImageNet 512 (latents of 4 x 64 x 64) and for ImageNet 64, as EDM2 trains them.
PRESETS = {
    f"img{resolution}-{size}": Config(model_channels=_CHANNELS[size], dropout=0.0 if size in ("xs", "s") else 0.1)
    for resolution, sizes in _SIZES.items()
    for size in sizes
}


class UNet(nn.Module):
    """F(x (B, C, H, W), c_noise (B,), labels (B,), a Condition or None) -> (B, C, H, W)."""

    def __init__(
        self, config: Config, *, channels: int, resolution: int, classes: int, inputs: Sequence[Input] = ()
    ) -> None:
        super().__init__()
        c = config
        self.channels, self.resolution, self.concat_balance = channels, resolution, c.concat_balance
        width = c.model_channels * (c.embedding_mult or max(c.channel_mult))
        self.embedding = Embedding(
            c.model_channels * (c.noise_mult or c.channel_mult[0]),
            width,
            kind=c.embedding,
            bandwidth=c.fourier_scale,
            classes=classes,
            label_balance=c.label_balance,
            inputs=inputs,
        )

        def block(
            inputs: int, outputs: int, size: int, *, down: bool, attention: bool = False, resample: str = ""
        ) -> Block:
            return Block(
                inputs,
                outputs,
                width,
                down=down,
                resample=resample,
                attention=c.head_channels if attention else 0,
                dropout=c.dropout if size <= (c.dropout_resolution or size) else 0.0,
                modulation=c.modulation,
                balance=c.residual_balance,
                attention_balance=c.attention_balance,
                clip=c.clip,
            )

        levels = tuple(c.model_channels * m for m in c.channel_mult)
        plan = Plan(
            resolution=resolution,
            channels=levels[0],
            levels=levels,
            blocks=c.blocks,
            attention_resolutions=c.attention_resolutions,
        )
        self.input = MPConv(channels + 1, levels[0], 3)
        self.encoder, skips = way_down(plan, partial(block, down=True))
        self.decoder, wide = way_up(plan, partial(block, down=False), skips)
        self.output = MPConv(wide, channels, 3)
        self.gain = nn.Parameter(torch.zeros(()))

    def forward(self, x: Value, c_noise: Value, labels: Labels = None) -> Value:
        check_images(x, self.channels, self.resolution)
        e = self.embedding(c_noise, labels)
        # The constant channel does what biases would.
        h = self.input(cat([x, torch.ones_like(value_of(x)[:, :1])]))
        skips = [h]
        for block in self.encoder.values():
            h = block(h, e)
            skips.append(h)
        for name, block in self.decoder.items():
            h = block(mp_cat(h, skips.pop(), self.concat_balance) if "_block" in name else h, e)
        return self.output(h, self.gain)


def build(config: Config, *, channels: int, resolution: int, classes: int, inputs: Sequence[Input] = ()) -> UNet:
    """The network for images (channels, resolution, resolution); classes=0 means unconditional.

    `inputs` are those that the method declares beside images, noise levels and labels.

    Raises:
        ValueError: the resolution cannot be halved as often as channel_mult asks, or heads do not divide the channels.
    """
    check_halvings(resolution, len(config.channel_mult))
    attend = [m for i, m in enumerate(config.channel_mult) if resolution >> i in config.attention_resolutions]
    for wide in [config.model_channels * mult for mult in (*attend, config.channel_mult[-1])]:
        if wide % config.head_channels:
            raise ValueError(f"head_channels: expected a divisor of {wide} channels, got {config.head_channels}")
    return UNet(config, channels=channels, resolution=resolution, classes=classes, inputs=inputs)
