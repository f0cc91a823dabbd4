"""Discriminator heads on the feature maps of a frozen network, and their hinge loss (Lim and Ye, arXiv 1705.02894)."""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from cmcore.diffusion.inputs import NO_LABEL
from cmcore.diffusion.precond import Denoiser
from cmcore.layers.blocks import block_maps
from cmcore.layers.classifier import Classifier
from cmcore.layers.text import TextTable
from cmcore.layers.words import WordEncoder

GROUP = 8  # images that are normalised together, as in StyleGAN-T


class GroupedBatchNorm(nn.Module):
    """Feature maps (B, C, H, W) with mean 0 and variance 1 by channel in each group of images, then an affine map.

    A batch norm that knows its 8 images only, in training and after, so that a batch can be cut between groups.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        """Raises:
        ValueError: the images are no multiple of the group.
        """
        if len(x) % GROUP:
            raise ValueError(f"expected a multiple of {GROUP} images, got {len(x)}")
        groups = x.float().unflatten(0, (-1, GROUP))
        variance, mean = torch.var_mean(groups, (1, 3, 4), correction=0, keepdim=True)
        normed = ((groups - mean) * (variance + 1e-5).rsqrt()).flatten(0, 1)
        return normed * self.weight[:, None, None] + self.bias[:, None, None]


class GroupHead(nn.Module):
    """Logits at the positions of a map (B, C, H, W): StyleGAN-T's head (arXiv 2301.09515), without spectral norms.

    Heads that see one image at a time let a generator without labels collapse to one image. Normalised beside its
    equals, what little it differs in is large.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first, self.second = self._block(channels, 1), self._block(channels, 3)
        self.last = nn.Conv2d(channels, 1, 1, bias=False)

    @staticmethod
    def _block(channels: int, kernel: int) -> nn.Sequential:
        convolution = nn.Conv2d(channels, channels, kernel, padding=kernel // 2, bias=False)
        return nn.Sequential(convolution, GroupedBatchNorm(channels), nn.LeakyReLU(0.2))

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        return self.last((x + self.second(x)) / 2**0.5)


def plain_head(channels: int, width: int = 128) -> nn.Sequential:
    """Logits at the positions of a map (B, C, H, W), each image by itself."""
    # Without the last bias: within the margin its gradients of real and generated images cancel.
    return nn.Sequential(nn.Conv2d(channels, width, 1), nn.LeakyReLU(0.2), nn.Conv2d(width, 1, 1, bias=False))


class Heads(nn.Module):
    """A head on each of several feature maps (B, C, H, W): logits (B, K), means over the positions."""

    def __init__(self, heads: Iterable[nn.Module]) -> None:
        super().__init__()
        self.heads = nn.ModuleList(heads)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        each = zip(self.heads, maps, strict=True)
        return torch.stack([head(values).mean((1, 2, 3)) for head, values in each], 1)


def build_heads(extractor: Classifier) -> Heads:
    """Heads for `maps_of`, which see groups of images."""
    return Heads(map(GroupHead, [*extractor.widths, extractor.widths[-1]]))


def build_block_heads(denoiser: Denoiser) -> Heads:
    """Heads for `block_maps`, whose channels a pass of the network in evaluation mode shows.

    They see each image by itself: many networks have one position, of which a norm would leave no mean to tell apart.
    """
    net: Any = denoiser.eval().net
    device = next(net.parameters()).device
    places = [(1, part.words.length) for part in net.modules() if isinstance(part, WordEncoder | TextTable)]
    places += [(1,) for part in net.modules() if getattr(part, "classes", 0)]
    labels = torch.full(places[0], NO_LABEL, device=device) if places else None
    sigma = torch.full((1,), denoiser.sigma_data, dtype=torch.float64, device=device)
    with torch.no_grad():
        x = torch.zeros(1, net.channels, net.resolution, net.resolution, device=device)
        maps = block_maps(denoiser, x, sigma, labels)
    return Heads(plain_head(values.shape[1]) for values in maps)


def maps_of(extractor: Classifier, x: Tensor) -> list[Tensor]:
    """What heads see of images (B, C, H, W): the extractor's maps, and the mean of the last."""
    maps = extractor.maps(x.float())
    return [*maps, maps[-1].mean((2, 3), keepdim=True)]


def hinge_real(logits: Tensor) -> Tensor:
    """max(0, 1 - l) of real images, the mean over the heads: (B, K) -> (B,)."""
    return (1 - logits).relu().mean(1)


def hinge_fake(logits: Tensor) -> Tensor:
    """max(0, 1 + l) of generated images, the mean over the heads: (B, K) -> (B,)."""
    return (1 + logits).relu().mean(1)


def gradient_penalty(logits: Tensor, maps: Sequence[Tensor]) -> Tensor:
    """R1 (arXiv 1801.04406) by the features: squared norm of each head's gradient, the mean over the heads: (B,)."""
    gradients = torch.autograd.grad(logits.sum(), list(maps), create_graph=True)
    return torch.stack([g.flatten(1).square().sum(1) for g in gradients], 1).mean(1)
