"""DiT, the diffusion transformer (arXiv 2212.09748), which SiT (arXiv 2401.08740) and MeanFlow train unchanged.

The defaults are DiT-XL/2. S, B and L are (hidden, depth, heads) = (384, 12, 6), (768, 12, 12) and (1024, 24, 16).
F = 0 at the start. `norm: double` bounds the modulation as sCM does in its U-Nets (arXiv 2410.11081, sec. 4.1).

DiT has an embedding of "no label"; here a dropped label adds nothing, which is the same family of functions: the
difference is a constant in the bias of the noise level's embedding.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from cmcore.config import require
from cmcore.diffusion.inputs import Input
from cmcore.diffusion.precond import Labels, NoiseCoordinate
from cmcore.dual import Value, add, each
from cmcore.layers.functions import scale_shift
from cmcore.layers.linear import Conv2d, linear
from cmcore.layers.timestep import TimestepEmbedding
from cmcore.layers.transformer import (
    Attention,
    FeedForward,
    ModulatedBranch,
    Modulation,
    TokenLayerNorm,
    TokenNorm,
    grid_positions,
)  # fmt: skip
from cmcore.layers.unet import check_images


@dataclass(frozen=True, kw_only=True)
class Config:
    """Shape and constants of the network."""

    c_noise: NoiseCoordinate = "log"
    patch: int = 2  # side of the square of pixels that is one token
    hidden: int = 1152
    depth: int = 28  # blocks, each an attention and a feed-forward layer
    heads: int = 16
    expansion: int = 4  # inner width of the feed-forward layers, in hidden
    features: int = 256  # of c_noise
    norm: TokenNorm = "adaptive"
    norm_eps: float = 1e-6
    dropout: float = 0.0  # of what every layer adds
    augment_dim: int = 0  # entries of the vector that says how an image was augmented

    def __post_init__(self) -> None:
        for key in ("patch", "depth", "heads", "expansion"):
            require(getattr(self, key) >= 1, key, "at least 1", getattr(self, key))
        require(self.hidden >= 4 and self.hidden % 4 == 0, "hidden", "a multiple of 4, at least 4", self.hidden)
        require(self.hidden % self.heads == 0, "heads", f"a divisor of hidden = {self.hidden}", self.heads)
        even = self.features >= 2 and self.features % 2 == 0
        require(even, "features", "an even number, at least 2", self.features)
        require(self.augment_dim >= 0, "augment_dim", "at least 0", self.augment_dim)
        require(0 <= self.dropout < 1, "dropout", "a number in [0, 1)", self.dropout)
        require(self.norm_eps > 0, "norm_eps", "a positive number", self.norm_eps)


class DiT(nn.Module):
    """F(x (B, C, H, W), c_noise (B,), labels (B,), a Condition or None) -> (B, C, H, W)."""

    positions: Tensor

    def __init__(
        self, config: Config, *, channels: int, resolution: int, classes: int, inputs: Sequence[Input] = ()
    ) -> None:
        super().__init__()
        c, D = config, config.hidden
        self.channels, self.resolution, self.patch = channels, resolution, c.patch
        self.embedding = TimestepEmbedding(c.features, D, classes=classes, augment_dim=c.augment_dim, inputs=inputs)
        self.input = Conv2d(channels, D, c.patch, stride=c.patch)
        self.register_buffer("positions", grid_positions(resolution // c.patch, D), persistent=False)
        self.blocks = nn.ModuleList(
            ModulatedBranch(branch, D, D, c.norm, eps=c.norm_eps, dropout=c.dropout)
            for _ in range(c.depth)
            for branch in (Attention(D, c.heads), FeedForward(D, D * c.expansion))
        )
        self.modulation = Modulation(D, D, c.norm, gate=False)
        self.norm = TokenLayerNorm(D, c.norm_eps)
        self.output = linear(D, channels * c.patch**2, gain=0.0)
        self._start()

    def _start(self) -> None:
        """DiT's initial weights where they are not those of the layers."""
        nn.init.xavier_uniform_(self.input.weight.flatten(1))  # a view: as a linear layer of the patches
        nn.init.zeros_(self.input.bias)  # pyright: ignore[reportArgumentType]
        for layer in (self.embedding.layer0, self.embedding.layer1, self.embedding.label):
            if layer is not None:
                nn.init.normal_(layer.weight, std=0.02)
        for layer in (self.embedding.layer0, self.embedding.layer1):
            nn.init.zeros_(layer.bias)

    def forward(self, x: Value, c_noise: Value, labels: Labels = None) -> Value:
        check_images(x, self.channels, self.resolution)
        e = self.embedding(c_noise, labels)
        h = add(self.input(x).flatten(2).mT, self.positions)
        for block in self.blocks:
            h = block(h, e)
        shift, scale = self.modulation(e)
        return each(self._image, self.output(scale_shift(self.norm(h), scale, shift)))

    def _image(self, tokens: Tensor) -> Tensor:
        """(B, T, p^2 C) -> (B, C, H, W); the channels of a pixel lie side by side in its token."""
        side, p = self.resolution // self.patch, self.patch
        squares = tokens.reshape(len(tokens), side, side, p, p, self.channels)
        return squares.permute(0, 5, 1, 3, 2, 4).reshape(len(tokens), self.channels, self.resolution, self.resolution)


def build(config: Config, *, channels: int, resolution: int, classes: int, inputs: Sequence[Input] = ()) -> DiT:
    """The network for images (channels, resolution, resolution); classes=0 means unconditional.

    `inputs` are those that the method declares beside images, noise levels and labels.

    Raises:
        ValueError: the resolution is no multiple of the patch.
    """
    if resolution % config.patch:
        raise ValueError(f"patch: expected a divisor of the resolution {resolution}, got {config.patch}")
    return DiT(config, channels=channels, resolution=resolution, classes=classes, inputs=inputs)
