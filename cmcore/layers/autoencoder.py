"""A small KL-regularised autoencoder (Kingma and Welling, arXiv 1312.6114; Rombach et al., arXiv 2112.10752)."""

from itertools import pairwise
from typing import NamedTuple

from torch import Tensor, nn

from cmcore.layers.norms import group_count
from cmcore.rng import seeded
from cmcore.tensors import mean_per_sample

LOG_VARIANCE = (-30.0, 20.0)  # range of what an encoder says


class Shape(NamedTuple):
    """The hyperparameters of the network's layout."""

    image_channels: int
    channels: int  # of the latents
    factor: int  # pixels along the side of an image for each along that of its latent: a power of 2
    width: int  # channels at half the resolution of the image; they double at every further halving


class KLAutoencoder(nn.Module):
    """Images (B, C, H, W) in [-1, 1] -> Gaussians over latents (B, c, H / factor, W / factor) -> images.

    Blocks of 2x2 pixels are stacked as channels before the first convolution, and unstacked after the last.
    """

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        stack = min(2, shape.factor)
        widths = [shape.width << level for level in range(max(1, shape.factor.bit_length() - 1))]
        pixels, first, last = shape.image_channels * stack**2, widths[0], widths[-1]
        down: list[nn.Module] = [nn.PixelUnshuffle(stack), _conv(pixels, first)]
        up: list[nn.Module] = []
        for fine, coarse in pairwise(widths):
            down += [_Residual(fine), _conv(fine, coarse, stride=2)]
            up = [nn.Upsample(scale_factor=2), _conv(coarse, fine), _Residual(fine), *up]
        self.encoder = nn.Sequential(*down, _Residual(last), *_output(last, 2 * shape.channels))
        self.decoder = nn.Sequential(
            _conv(shape.channels, last), _Residual(last), *up, *_output(first, pixels), nn.PixelShuffle(stack)
        )

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Means and logarithms of variances, (B, c, h, w) each."""
        mean, log_variance = self.encoder(x).chunk(2, dim=1)
        return mean, log_variance.clamp(*LOG_VARIANCE)

    def decode(self, latents: Tensor) -> Tensor:
        """Images, about in [-1, 1]."""
        return self.decoder(latents)


class _Residual(nn.Module):
    """x + conv(silu(norm(conv(silu(norm(x))))))."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(*_output(channels, channels), *_output(channels, channels))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)


def _output(channels: int, out: int) -> list[nn.Module]:
    return [nn.GroupNorm(group_count(channels), channels), nn.SiLU(), _conv(channels, out)]


def _conv(channels: int, out: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(channels, out, 3, stride, 1)


def build_autoencoder(shape: Shape, seed: int) -> KLAutoencoder:
    """The network with random weights from a seed; global generators keep their state."""
    with seeded(seed, "autoencoder"):
        return KLAutoencoder(shape)


def kl_divergence(mean: Tensor, log_variance: Tensor) -> Tensor:
    """KL(N(mean, variance) || N(0, 1)) of a number, averaged over those of an image: (B,) (arXiv 1312.6114, App. B)."""
    return mean_per_sample(0.5 * (mean**2 + log_variance.exp() - 1 - log_variance))
