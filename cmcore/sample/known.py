"""The known part of an image to edit: coefficients under an invertible linear map A (arXiv 2303.01469, App. D).

Images are (B, C, H, W) in [-1, 1], float64 inside. A is orthogonal, so restoring the known coefficients is a projection
to the nearest image that has them.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

LUMA = (0.2989, 0.5870, 0.1140)
"""Weights of red, green and blue in the grey value (ITU-R BT.601)."""


@dataclass(frozen=True)
class Known:
    """The known part of images: `coefficients` under A (`forward`), where `unknown` (Omega) is False."""

    forward: Callable[[Tensor], Tensor]
    inverse: Callable[[Tensor], Tensor]
    coefficients: Tensor
    unknown: Tensor  # bool, broadcasts against the coefficients

    def noised(self, noise: Tensor) -> "Known":
        """The known part of the images with noise (B, C, H, W) on them."""
        return replace(self, coefficients=self.coefficients + self.forward(noise))

    def error(self, x: Tensor) -> float:
        """The largest difference of a pixel between the known part and that of x."""
        off = torch.where(self.unknown, 0.0, self.forward(x.double()) - self.coefficients)
        return float(self.inverse(off).abs().max())

    def shown(self) -> Tensor:
        """The known part as images, with zeros for the unknown coefficients."""
        return self.inverse(torch.where(self.unknown, torch.zeros_like(self.coefficients), self.coefficients))

    def project(self, x: Tensor) -> Tensor:
        """x with the known coefficients: A^-1[(A y)(1 - Omega) + (A x) Omega]."""
        return self.inverse(torch.where(self.unknown, self.forward(x), self.coefficients))


def known_pixels(images: Tensor, missing: Tensor) -> Known:
    """Inpainting: A is the identity; missing is bool and broadcasts. Known pixels come back exactly."""
    if missing.dtype != torch.bool:
        raise ValueError(f"known_pixels: expected a bool mask, True where a pixel is missing, got {missing.dtype}")
    return Known(_identity, _identity, images.double(), missing.expand_as(images))


def grey(images: Tensor) -> Tensor:
    """The LUMA-weighted sum of channels, float64 (B, 1, H, W), of colour images (B, 3, H, W)."""
    luma = torch.tensor(LUMA, dtype=torch.float64, device=images.device)
    return torch.einsum("bchw,c->bhw", images.double(), luma)[:, None]


def known_grey(values: Tensor) -> Known:
    """Colourisation: values (B, 1, H, W), see `grey`; A rotates colours to make them an axis."""
    if values.shape[1] != 1:
        raise ValueError(f"known_grey: expected one channel, got shape {tuple(values.shape)}")
    luma = torch.tensor(LUMA, dtype=torch.float64, device=values.device)
    Q = orthogonal_basis(luma)
    unknown = torch.tensor([False, True, True], device=values.device)
    # The first basis vector is luma / |luma|, so its coefficient is the grey value over |luma|.
    coefficients = torch.movedim(values.double(), 1, -1) / luma.norm() * ~unknown
    return Known(
        forward=lambda x: torch.movedim(x, 1, -1) @ Q,
        inverse=lambda c: torch.movedim(c @ Q.T, -1, 1),
        coefficients=coefficients,
        unknown=unknown,
    )


def known_means(low: Tensor, factor: int) -> Known:
    """Super-resolution: low (B, C, h, w) are the means of factor x factor patches; A rotates every patch."""
    p = factor
    Q = orthogonal_basis(torch.ones(p * p, dtype=torch.float64, device=low.device))
    unknown = torch.arange(p * p, device=low.device) > 0

    def to_patches(x: Tensor) -> Tensor:
        return x.unflatten(3, (-1, p)).unflatten(2, (-1, p)).transpose(3, 4).flatten(4)

    def from_patches(patches: Tensor) -> Tensor:
        return patches.unflatten(4, (p, p)).transpose(3, 4).flatten(4, 5).flatten(2, 3)

    return Known(
        forward=lambda x: to_patches(x) @ Q,
        inverse=lambda c: from_patches(c @ Q.T),
        # The first basis vector is 1/p throughout, so its coefficient is p times the patch's mean.
        coefficients=p * low.double()[..., None] * ~unknown,
        unknown=unknown,
    )


def orthogonal_basis(first: Tensor) -> Tensor:
    """An orthogonal matrix Q (n, n) whose first column is first (n,), normalised; the others complete it by QR."""
    columns = torch.eye(len(first), dtype=first.dtype, device=first.device)
    columns[:, 0] = first
    Q = torch.linalg.qr(columns).Q
    return torch.cat([(first / first.norm())[:, None], Q[:, 1:]], dim=1)


def _identity(x: Tensor) -> Tensor:
    return x
