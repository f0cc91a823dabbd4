"""Augmentations of training images. Their random numbers are addressed like all others, so a step can be repeated."""

import torch
from torch import Tensor

from cmcore.rng import Draws
from cmcore.tensors import expand_like


def flip(x: Tensor, draws: Draws, *, probability: float = 0.5) -> Tensor:
    """Mirror each image of x (B, C, H, W) left to right with the given probability."""
    chosen = draws.uniform(stream="flip") < probability
    return torch.where(expand_like(chosen, x).bool(), x.flip(-1), x)
