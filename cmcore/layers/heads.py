"""Discriminator heads on the feature maps of a frozen network, and their hinge loss (Lim and Ye, arXiv 1705.02894)."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from cmcore.diffusion.inputs import NO_LABEL
from cmcore.diffusion.precond import Denoiser
from cmcore.layers.blocks import block_maps
from cmcore.layers.classifier import Classifier
from cmcore.layers.words import WordEncoder


class Heads(nn.Module):
    """A small head on each of several feature maps (B, C, H, W): logits (B, K), means over the positions.

    Args:
        channels: C of every map.
        width: hidden channels of a head.
    """

    def __init__(self, channels: Sequence[int], width: int = 128) -> None:
        super().__init__()
        self.heads = nn.ModuleList(
            # Without the last bias: within the margin its gradients of real and generated images cancel.
            nn.Sequential(nn.Conv2d(C, width, 1), nn.LeakyReLU(0.2), nn.Conv2d(width, 1, 1, bias=False))
            for C in channels
        )

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        each = zip(self.heads, maps, strict=True)
        return torch.stack([head(values).mean((1, 2, 3)) for head, values in each], 1)


def build_heads(extractor: Classifier) -> Heads:
    """Heads for `maps_of`."""
    return Heads([*extractor.widths, extractor.widths[-1]])


def build_block_heads(denoiser: Denoiser) -> Heads:
    """Heads for `block_maps`, whose channels a pass of the network in evaluation mode shows."""
    net: Any = denoiser.eval().net
    device = next(net.parameters()).device
    places = [(1, part.words.length) for part in net.modules() if isinstance(part, WordEncoder)]
    places += [(1,) for part in net.modules() if getattr(part, "classes", 0)]
    labels = torch.full(places[0], NO_LABEL, device=device) if places else None
    sigma = torch.full((1,), denoiser.sigma_data, dtype=torch.float64, device=device)
    with torch.no_grad():
        x = torch.zeros(1, net.channels, net.resolution, net.resolution, device=device)
        maps = block_maps(denoiser, x, sigma, labels)
    return Heads([values.shape[1] for values in maps])


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
