"""Embeddings of the noise level, of labels and of further inputs.

c_noise and further inputs are (B,), labels are (B,) int64, modulation vectors e are (B, E).
"""

import math
from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from cmcore.diffusion.inputs import NO_LABEL, Input, InputError, declared
from cmcore.diffusion.precond import Labels, as_condition
from cmcore.dual import Value, add, each, value_of
from cmcore.layers.functions import cat, cos, silu, sin
from cmcore.layers.linear import InitKind, linear

EmbeddingKind = Literal["positional", "fourier"]


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

    def forward(self, c_noise: Value) -> Value:
        angles = each(lambda c: torch.outer(c, self.freqs), c_noise)
        return cat([sin(angles), cos(angles)])


class FourierFeatures(nn.Module):
    """c_noise (B,) -> (B, channels): sines, then cosines, at random frequencies N(0, scale^2) (NCSN++)."""

    freqs: Tensor

    def __init__(self, channels: int, *, scale: float) -> None:
        super().__init__()
        self.register_buffer("freqs", torch.randn(channels // 2) * scale)

    def forward(self, c_noise: Value) -> Value:
        angles = each(lambda c: torch.outer(c, 2 * math.pi * self.freqs), c_noise)
        return cat([sin(angles), cos(angles)])


def condition_vectors(
    c_noise: Value, labels: Labels, *, classes: int, augment_dim: int = 0
) -> tuple[Tensor | None, Tensor | None]:
    """One-hot labels (B, classes), zero for NO_LABEL, and the augmentation vector (B, augment_dim), in c_noise's dtype.

    Raises:
        InputError: they are not those that the network was built for.
    """
    indices, augment, _ = as_condition(labels)
    if c_noise.ndim != 1:
        raise ValueError(f"c_noise: expected shape (B,), got {tuple(c_noise.shape)}")
    if (indices is None) != (classes == 0):
        wanted = f"class indices below {classes}" if classes else "None, as the network is unconditional"
        raise InputError("labels", wanted, indices, "`conditional` in the parameters")
    if augment is not None and augment.shape[1:] != (augment_dim,):
        wanted = f"shape (B, {augment_dim})" if augment_dim else "None"
        raise InputError("augment", wanted, augment, "`augment_dim` in the network's parameters")
    hot = None if indices is None else one_hot(indices, classes).to(c_noise.dtype)
    return hot, None if augment is None else augment.to(c_noise.dtype)


def one_hot(indices: Tensor, classes: int) -> Tensor:
    """(B,) -> (B, classes) int64, all zeros for NO_LABEL, as EDM's networks see a dropped label."""
    known = indices != NO_LABEL
    return nn.functional.one_hot(torch.where(known, indices, 0), classes) * known[:, None]


class ZeroEmbedding(nn.Module):
    """(B,) -> (B, width): positional features, then a linear layer that is zero at first."""

    def __init__(self, features: int, width: int, *, init: InitKind = "xavier") -> None:
        super().__init__()
        self.features = PositionalFeatures(features)
        self.layer = linear(features, width, gain=0.0, bias=False, init=init)

    def forward(self, value: Value) -> Value:
        return self.layer(self.features(value))


class InputEmbedding(nn.ModuleDict):
    """(e (B, E), c_noise (B,), labels) -> e and the embeddings of the declared inputs, in the order of declaration.

    A student that has more inputs than its teacher starts as the teacher, as all embeddings are zero at first; sCM
    (arXiv 2410.11081) adds the guidance scale in this way.

    Args:
        inputs: declared by the method.
        embedding: makes the embedding of one, (B,) -> (B, E), zero at first.
    """

    def __init__(self, inputs: Sequence[Input], embedding: Callable[[], nn.Module]) -> None:
        names = [known.name for known in inputs]
        if len({*names}) < len(names):
            raise ValueError(f"inputs: expected each name once, got {', '.join(names)}")
        super().__init__({name: embedding() for name in names})
        self.declared = tuple(inputs)

    def forward(self, e: Value, c_noise: Value, labels: Labels) -> Value:
        given = as_condition(labels).inputs
        for name, value in given.items():
            declared(name, value, self.declared)
            if value.shape != c_noise.shape:
                raise InputError(name, f"shape {tuple(c_noise.shape)}", value, "the method that gives it")
        for known in self.declared:
            absent = c_noise if known.kind == "time" else torch.full_like(value_of(c_noise), known.neutral)
            e = add(e, self[known.name](given.get(known.name, absent).to(c_noise.dtype)))
        return e


class NoiseEmbedding(nn.Module):
    """(c_noise (B,), labels (B,), a Condition or None, encoded words (B, L, D)) -> modulation vector e (B, width).

    Words, of the width `words`, add their mean.
    """

    def __init__(
        self,
        features: int,
        width: int,
        *,
        kind: EmbeddingKind,
        fourier_scale: float,
        classes: int,
        augment_dim: int = 0,
        inputs: Sequence[Input] = (),
        words: int = 0,
    ) -> None:
        super().__init__()
        self.classes, self.augment_dim = classes, augment_dim
        fourier = kind == "fourier"
        self.features = FourierFeatures(features, scale=fourier_scale) if fourier else PositionalFeatures(features)
        self.label = linear(classes, features) if classes else None
        self.augment = linear(augment_dim, features, bias=False) if augment_dim else None
        self.layer0, self.layer1 = linear(features, width), linear(width, width)
        self.inputs = InputEmbedding(inputs, lambda: ZeroEmbedding(features, features))
        self.words = linear(words, features, bias=False) if words else None

    def forward(self, c_noise: Value, labels: Labels, words: Tensor | None = None) -> Value:
        hot, augment = condition_vectors(c_noise, labels, classes=self.classes, augment_dim=self.augment_dim)
        e = self.features(c_noise)
        if self.label is not None and hot is not None:
            # EDM scales the one-hot vector to unit variance per entry, sqrt(K).
            e = add(e, self.label(hot * math.sqrt(self.classes)))
        if self.augment is not None and augment is not None:
            e = add(e, self.augment(augment))
        if self.words is not None and words is not None:
            e = add(e, self.words(words.mean(1)))
        e = self.inputs(e, c_noise, labels)
        return silu(self.layer1(silu(self.layer0(e))))
