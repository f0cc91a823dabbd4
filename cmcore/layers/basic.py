"""Parts that the networks share.

Every part works out of place and has a forward-mode derivative, so `torch.func.jvp` goes through every network with
respect to the image and to c_noise. By default initialisation is that of EDM's DDPM++ (arXiv 2206.00364).
Modulation vectors e are (B, E), c_noise is (B,), labels are (B,) int64.
"""

import math
from collections.abc import Sequence
from typing import Literal, TypeVar

import torch
from torch import Tensor, nn

from cmcore.diffusion.precond import NO_LABEL, Labels, as_condition
from cmcore.layers.dual import Conv2d, Linear, conv2d, has_tangent

InitKind = Literal["xavier", "uniform"]
EmbeddingKind = Literal["positional", "fourier"]
NormKind = Literal["group", "adaptive", "double"]
Layer = TypeVar("Layer", nn.Linear, nn.Conv2d)


def linear(inputs: int, outputs: int, *, gain: float = 1.0, bias: bool = True, init: InitKind = "xavier") -> nn.Linear:
    """A linear layer with or without a bias, initialised as `initialised` says."""
    return initialised(Linear(inputs, outputs, bias), gain, init)


def conv(inputs: int, outputs: int, kernel: int, *, gain: float = 1.0, init: InitKind = "xavier") -> nn.Conv2d:
    """A convolution that keeps the resolution, initialised as `initialised` says."""
    return initialised(Conv2d(inputs, outputs, kernel, padding=kernel // 2), gain, init)


def initialised(layer: Layer, gain: float, init: InitKind) -> Layer:
    """A new layer with its initial weights.

    - "xavier": Xavier-uniform weights times `gain`, biases zero;
    - "uniform": weights and biases uniform in [-gain, gain]/sqrt(inputs), as ADM has them.
    """
    if init == "xavier":
        nn.init.xavier_uniform_(layer.weight, gain)
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)
    elif gain != 1:  # with a gain of 1 it is how torch makes a layer
        with torch.no_grad():
            for parameter in layer.parameters():
                parameter.mul_(gain)
    return layer


def group_count(channels: int, largest: int = 32, least_channels: int = 4) -> int:
    """Normalisation groups: EDM's min(32, channels / 4), or the next smaller number that divides the channels."""
    start = max(1, min(largest, channels // least_channels))
    return next(groups for groups in range(start, 0, -1) if channels % groups == 0)


class GroupNorm(nn.Module):
    """Group normalisation over (B, C, ...); with groups=1 on (B, C) it is layer normalisation."""

    def __init__(self, channels: int, *, groups: int = 0, eps: float = 1e-6, affine: bool = True) -> None:
        super().__init__()
        self.groups, self.eps = groups or group_count(channels), eps
        self.weight = nn.Parameter(torch.ones(channels)) if affine else None
        self.bias = nn.Parameter(torch.zeros(channels)) if affine else None

    def forward(self, x: Tensor) -> Tensor:
        if has_tangent(x):
            x = x.contiguous()  # its forward-mode derivative knows no other memory format
        return nn.functional.group_norm(x, self.groups, self.weight, self.bias, self.eps)


def pixel_norm(v: Tensor, eps: float = 1e-8) -> Tensor:
    """v (B, C) over its root mean square across the channels (arXiv 1710.10196, sec. 4.2).

    The mean square is taken in float32 at least: in float16 it overflows from 256 on, and eps is 0.
    """
    wide = v.to(torch.promote_types(v.dtype, torch.float32))
    return v * torch.rsqrt(wide.square().mean(1, keepdim=True) + eps).to(v.dtype)


class ModulatedNorm(nn.Module):
    """Normalisation of x (B, C, ...) that is told the noise level by e (B, E).

    - "group": norm(x + b(e)), DDPM++'s additive embedding;
    - "adaptive": norm(x) (1 + s(e)) + b(e), ADM's adaptive group normalisation (arXiv 2105.05233, sec. 3.1);
    - "double": norm(x) pnorm(s(e)) + pnorm(b(e)), sCM's adaptive double normalisation (arXiv 2410.11081, sec. 4.1).
      There the norm has no weights of its own, which could undo the bound, and the bias of s starts at 1.
    """

    def __init__(
        self,
        channels: int,
        embedding: int,
        kind: NormKind,
        *,
        groups: int = 0,
        eps: float = 1e-6,
        init: InitKind = "xavier",
    ) -> None:
        super().__init__()
        self.kind = kind
        self.norm = GroupNorm(channels, groups=groups, eps=eps, affine=kind != "double")
        self.affine = linear(embedding, channels if kind == "group" else 2 * channels, init=init)
        if kind == "double":
            with torch.no_grad():
                self.affine.bias[:channels].fill_(1)

    def forward(self, x: Tensor, e: Tensor) -> Tensor:
        shape = (x.shape[0], -1, *[1] * (x.ndim - 2))
        if self.kind == "group":
            return self.norm(x + self.affine(e).reshape(shape))
        s, b = self.affine(e).chunk(2, dim=1)
        s, b = (1 + s, b) if self.kind == "adaptive" else (pixel_norm(s), pixel_norm(b))
        return torch.addcmul(b.reshape(shape), self.norm(x), s.reshape(shape))


class PositionalFeatures(nn.Module):
    """c_noise (B,) -> (B, channels): sines, then cosines, at frequencies from 1 down to 1/max_positions (DDPM++).

    The lowest frequency is reached exactly, as in EDM.
    """

    freqs: Tensor

    def __init__(self, channels: int, *, max_positions: float = 10_000) -> None:
        super().__init__()
        half = channels // 2
        exponents = torch.arange(half, dtype=torch.float64) / max(1, half - 1)
        self.register_buffer("freqs", (max_positions**-exponents).to(torch.get_default_dtype()), persistent=False)

    def forward(self, c_noise: Tensor) -> Tensor:
        angles = torch.outer(c_noise, self.freqs)
        return torch.cat([angles.sin(), angles.cos()], dim=1)


class FourierFeatures(nn.Module):
    """c_noise (B,) -> (B, channels): sines, then cosines, at random frequencies N(0, scale^2) (NCSN++)."""

    freqs: Tensor

    def __init__(self, channels: int, *, scale: float) -> None:
        super().__init__()
        self.register_buffer("freqs", torch.randn(channels // 2) * scale)

    def forward(self, c_noise: Tensor) -> Tensor:
        angles = torch.outer(c_noise, 2 * math.pi * self.freqs)
        return torch.cat([angles.sin(), angles.cos()], dim=1)


def condition_vectors(
    c_noise: Tensor, labels: Labels, *, classes: int, augment_dim: int = 0
) -> tuple[Tensor | None, Tensor | None]:
    """One-hot labels (B, classes), zero for NO_LABEL, and the augmentation vector (B, augment_dim), in c_noise's dtype.

    Raises:
        ValueError: they are not what the network was built for.
    """
    indices, augment, _ = as_condition(labels)
    if c_noise.ndim != 1:
        raise ValueError(f"c_noise: expected shape (B,), got {tuple(c_noise.shape)}")
    if (indices is None) != (classes == 0):
        wanted = f"class indices below {classes}" if classes else "None, as the net is unconditional"
        got = "None" if indices is None else f"a tensor {tuple(indices.shape)}"
        raise ValueError(f"labels: expected {wanted}, got {got}; see `conditional` in the parameters")
    if augment is not None and augment.shape[1:] != (augment_dim,):
        wanted = f"shape (B, {augment_dim})" if augment_dim else "None"
        got = tuple(augment.shape)
        raise ValueError(f"augment: expected {wanted}, got {got}; see `augment_dim` in the net's parameters")
    hot = None if indices is None else one_hot(indices, classes).to(c_noise.dtype)
    return hot, None if augment is None else augment.to(c_noise.dtype)


def one_hot(indices: Tensor, classes: int) -> Tensor:
    """(B,) -> (B, classes) int64, all zeros for NO_LABEL, as EDM's networks are told a dropped label."""
    known = indices != NO_LABEL
    return nn.functional.one_hot(torch.where(known, indices, 0), classes) * known[:, None]


def guidance_scales(c_noise: Tensor, labels: Labels, *, learned: bool) -> Tensor:
    """The guidance scales s (B,) in c_noise's dtype; ones where nothing is said of them.

    Raises:
        ValueError: the network has not learned any.
    """
    scales = as_condition(labels).guidance
    if scales is None:
        return torch.ones_like(c_noise)
    if not learned:
        got = tuple(scales.shape)
        raise ValueError(f"guidance: expected None, got a tensor {got}; see `guidance` in the net's parameters")
    return scales.to(c_noise.dtype)


class GuidanceEmbedding(nn.Module):
    """Guidance scales (B,) -> (B, width), added to the embedding of the noise level (arXiv 2410.11081).

    Positional features, then a linear layer that is zero at first: a student starts as its unguided teacher.
    """

    def __init__(self, features: int, width: int, *, init: InitKind = "xavier") -> None:
        super().__init__()
        self.features = PositionalFeatures(features)
        self.layer = linear(features, width, gain=0.0, bias=False, init=init)

    def forward(self, s: Tensor) -> Tensor:
        return self.layer(self.features(s))


class NoiseEmbedding(nn.Module):
    """(c_noise (B,), labels (B,), a Condition or None) -> modulation vector e (B, width)."""

    def __init__(
        self,
        features: int,
        width: int,
        *,
        kind: EmbeddingKind,
        fourier_scale: float,
        classes: int,
        augment_dim: int = 0,
        guidance: bool = False,
    ) -> None:
        super().__init__()
        self.classes, self.augment_dim = classes, augment_dim
        fourier = kind == "fourier"
        self.features = FourierFeatures(features, scale=fourier_scale) if fourier else PositionalFeatures(features)
        self.label = linear(classes, features) if classes else None
        self.augment = linear(augment_dim, features, bias=False) if augment_dim else None
        self.layer0, self.layer1 = linear(features, width), linear(width, width)
        self.guidance = GuidanceEmbedding(features, features) if guidance else None

    def forward(self, c_noise: Tensor, labels: Labels) -> Tensor:
        hot, augment = condition_vectors(c_noise, labels, classes=self.classes, augment_dim=self.augment_dim)
        e = self.features(c_noise)
        if self.label is not None and hot is not None:
            # EDM scales the one-hot vector to unit variance per entry, sqrt(K).
            e = e + self.label(hot * math.sqrt(self.classes))
        if self.augment is not None and augment is not None:
            e = e + self.augment(augment)
        s = guidance_scales(c_noise, labels, learned=self.guidance is not None)
        if self.guidance is not None:
            e = e + self.guidance(s)
        return nn.functional.silu(self.layer1(nn.functional.silu(self.layer0(e))))


class Resample(nn.Module):
    """Halve or double the resolution of (B, C, H, W) with a separable filter; taps (1, 1) average or repeat pixels.

    `padded` says that the images already have the border that a longer filter needs on the way down.
    """

    kernel: Tensor

    def __init__(self, taps: Sequence[float], *, up: bool, padded: bool = False) -> None:
        super().__init__()
        f = torch.tensor(taps, dtype=torch.get_default_dtype())
        f = f / f.sum()
        self.up, self.padding = up, 0 if padded else (len(taps) - 1) // 2
        self.box = len(taps) == 2 and taps[0] == taps[1]
        self.register_buffer("kernel", torch.outer(f, f)[None, None] * (4 if up else 1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        if self.box:
            return (
                nn.functional.interpolate(x, scale_factor=2, mode="nearest")
                if self.up
                else nn.functional.avg_pool2d(x, 2)
            )
        kernel = self.kernel.to(x.dtype).expand(x.shape[1], -1, -1, -1)
        resize = nn.functional.conv_transpose2d if self.up else conv2d
        return resize(x, kernel, stride=2, padding=self.padding, groups=x.shape[1])
