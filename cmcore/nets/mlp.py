"""Residual MLP on flattened pixels, for images too small for convolutions to pay.

Pre-normalised residual blocks, each modulated by the noise level through its norm; F = 0 at the start.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from cmcore.config import require
from cmcore.diffusion.inputs import Input
from cmcore.diffusion.precond import Labels, NoiseCoordinate
from cmcore.dual import Value, add
from cmcore.layers.embeddings import EmbeddingKind, NoiseEmbedding
from cmcore.layers.functions import dropout, silu
from cmcore.layers.linear import linear
from cmcore.layers.norms import GroupNorm, ModulatedNorm, NormKind
from cmcore.layers.unet import check_images


@dataclass(frozen=True, kw_only=True)
class Config:
    """Shape and constants of the network."""

    c_noise: NoiseCoordinate = "log"
    hidden: int = 512
    blocks: int = 4
    expansion: int = 1  # inner width of a block, in hidden
    dropout: float = 0.0
    embedding: EmbeddingKind = "positional"
    fourier_scale: float = 16.0
    features: int = 64  # of c_noise
    embedding_width: int = 128
    norm: NormKind = "adaptive"
    norm_eps: float = 1e-6
    residual_gain: float = 1e-5  # initial gain of the layer that closes a residual branch
    augment_dim: int = 0  # entries of the vector that says how an image was augmented; 0 has no such input

    def __post_init__(self) -> None:
        for key in ("hidden", "blocks", "expansion", "embedding_width"):
            require(getattr(self, key) >= 1, key, "at least 1", getattr(self, key))
        require(self.augment_dim >= 0, "augment_dim", "at least 0", self.augment_dim)
        even = self.features >= 2 and self.features % 2 == 0
        require(even, "features", "an even number, at least 2", self.features)
        require(0 <= self.dropout < 1, "dropout", "a number in [0, 1)", self.dropout)
        for key in ("fourier_scale", "norm_eps"):
            require(getattr(self, key) > 0, key, "a positive number", getattr(self, key))


class Block(nn.Module):
    """h + W1 dropout(silu(W0 norm(h, e))), for h (B, hidden)."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        hidden, inner = config.hidden, config.hidden * config.expansion
        self.dropout = config.dropout
        self.norm = ModulatedNorm(hidden, config.embedding_width, config.norm, groups=1, eps=config.norm_eps)
        self.layer0 = linear(hidden, inner)
        self.layer1 = linear(inner, hidden, gain=config.residual_gain)

    def forward(self, h: Value, e: Value) -> Value:
        y = silu(self.layer0(self.norm(h, e)))
        if self.training and self.dropout:
            y = dropout(y, self.dropout)
        return add(h, self.layer1(y))


class MLP(nn.Module):
    """F(x (B, C, H, W), c_noise (B,), labels (B,), a Condition or None) -> (B, C, H, W)."""

    def __init__(
        self, config: Config, *, channels: int, resolution: int, classes: int, inputs: Sequence[Input] = ()
    ) -> None:
        super().__init__()
        self.channels, self.resolution = channels, resolution
        pixels = channels * resolution**2
        self.embedding = NoiseEmbedding(
            config.features,
            config.embedding_width,
            kind=config.embedding,
            fourier_scale=config.fourier_scale,
            classes=classes,
            augment_dim=config.augment_dim,
            inputs=inputs,
        )
        self.input = linear(pixels, config.hidden)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.blocks))
        self.norm = GroupNorm(config.hidden, groups=1, eps=config.norm_eps)
        self.output = linear(config.hidden, pixels, gain=0.0)

    def forward(self, x: Value, c_noise: Value, labels: Labels = None) -> Value:
        check_images(x, self.channels, self.resolution)
        e = self.embedding(c_noise, labels)
        h = self.input(x.flatten(1))
        for block in self.blocks:
            h = block(h, e)
        return self.output(self.norm(h)).reshape(x.shape)


def build(config: Config, *, channels: int, resolution: int, classes: int, inputs: Sequence[Input] = ()) -> MLP:
    """The network for images (channels, resolution, resolution); classes=0 means unconditional.

    `inputs` are those that the method declares beside images, noise levels and labels.
    """
    return MLP(config, channels=channels, resolution=resolution, classes=classes, inputs=inputs)
