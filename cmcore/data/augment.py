"""Augmentations of training images, with addressed random numbers, so that a step can be repeated.

EDM's pipeline (arXiv 2206.00364, App. F.2; the transforms are those of arXiv 2006.06676, App. B) trains on distorted
images and gives the network the parameters of the distortion as an input. At sampling time that input is zero, so no
distorted images are generated.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from cmcore.data.warp import warp
from cmcore.rng import Draws
from cmcore.tensors import expand_like

SCALE_STD = ANISOTROPY_STD = 0.2  # of log2 of the factor
TRANSLATION_STD = 0.125  # of the shift, in image widths
ANISOTROPY_TURNED = 0.5  # probability that its axes are not those of the image


def flip(x: Tensor, draws: Draws, *, probability: float = 0.5) -> Tensor:
    """Mirror each image of x (B, C, H, W) left to right with the given probability."""
    chosen = draws.uniform(stream="flip") < probability
    return torch.where(expand_like(chosen, x).bool(), x.flip(-1), x)


class Distortion(NamedTuple):
    """The distortion of each image: (B,) float64, (B, 2) for the translation; all zeros are the identity."""

    x_flip: Tensor  # 0 or 1
    y_flip: Tensor
    scale: Tensor  # log2 of the factor, in units of SCALE_STD
    angle: Tensor  # radians
    anisotropy: Tensor  # log2 of the factor along one axis, its inverse across, in units of ANISOTROPY_STD
    axis: Tensor  # radians
    translation: Tensor  # in units of TRANSLATION_STD image widths

    @property
    def labels(self) -> Tensor:
        """The network's augmentation input, (B, AUGMENT_DIM) float32."""
        angle, axis, amount = self.angle, self.axis, self.anisotropy
        first = (self.x_flip, self.y_flip, self.scale, angle.cos() - 1, angle.sin(), amount * axis.cos())
        return torch.stack([*first, amount * axis.sin(), *self.translation.unbind(1)], dim=1).float()

    @property
    def matrix(self) -> Tensor:
        """(B, 2, 2), maps directions in the distorted image to directions in the original.

        An image is scaled, then turned, then stretched; the stretch is exp(a S), where S mirrors at the axis.
        """
        cos, sin = self.angle.cos(), self.angle.sin()
        turn = torch.stack([cos, -sin, sin, cos], dim=1).reshape(-1, 2, 2)
        cos, sin = (2 * self.axis).cos(), (2 * self.axis).sin()
        mirror = torch.stack([-cos, sin, sin, cos], dim=1).reshape(-1, 2, 2)
        amount = math.log(2) * ANISOTROPY_STD * self.anisotropy[:, None, None]
        stretch = amount.cosh() * torch.eye(2, dtype=cos.dtype, device=cos.device) + amount.sinh() * mirror
        return (-SCALE_STD * self.scale).exp2()[:, None, None] * turn @ stretch

    @property
    def bent(self) -> Tensor:
        """True where an image needs more than a mirror, (B,) bool."""
        return (self.scale != 0) | (self.angle != 0) | (self.anisotropy != 0) | (self.translation != 0).any(1)


def draw(draws: Draws, probability: float) -> Distortion:
    """The distortions of a step: a left-right mirror with probability 1/2, every other kind with `probability`."""
    chosen = draws.uniform((6,), stream="augment.which")
    normal = draws.normal((4,), stream="augment.amount", dtype=torch.float64)
    angle = math.pi * (2 * draws.uniform((2,), stream="augment.angle") - 1)
    kinds = (chosen[:, :4] < probability).double()
    return Distortion(
        x_flip=(chosen[:, 4] < 0.5).double(),
        # EDM draws a mirror with the probability, and half of these are the identity.
        y_flip=(chosen[:, 5] < probability / 2).double(),
        scale=kinds[:, 0] * normal[:, 0],
        angle=kinds[:, 1] * angle[:, 0],
        anisotropy=kinds[:, 2] * normal[:, 1],
        axis=(draws.uniform(stream="augment.turned") < ANISOTROPY_TURNED) * angle[:, 1],
        translation=kinds[:, 3:] * normal[:, 2:],
    )


@torch.no_grad()
def distort(x: Tensor, distortion: Distortion) -> Tensor:
    """The images x (B, C, H, W), mirrored and then warped; unwarped images keep their exact pixels."""
    x = torch.where(expand_like(distortion.x_flip, x).bool(), x.flip(-1), x)
    x = torch.where(expand_like(distortion.y_flip, x).bool(), x.flip(-2), x)
    matrix, bent = distortion.matrix, distortion.bent
    across, down = (TRANSLATION_STD * distortion.translation).unbind(1)
    pixels = torch.stack([across * x.shape[-1], down * x.shape[-2]], dim=1)
    shift = -(matrix @ pixels[:, :, None]).squeeze(-1)
    if x.device.type == "cpu":
        rows = bent.nonzero().squeeze(1)
        return x.index_copy(0, rows, warp(x[rows], matrix[rows], shift[rows]))
    # Selecting rows would synchronise the host with the device.
    return torch.where(expand_like(bent, x).bool(), warp(x, matrix, shift), x)


def augment(x: Tensor, draws: Draws, probability: float) -> tuple[Tensor, Tensor]:
    """EDM's pipeline: distorted images (B, C, H, W) and the network's augmentation input (B, AUGMENT_DIM)."""
    distortion = draw(draws, probability)
    return distort(x, distortion), distortion.labels
