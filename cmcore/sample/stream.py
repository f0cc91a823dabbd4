"""Streams of generated images, independent of the batch size."""

import math
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn

from cmcore.diffusion.ode import Denoise
from cmcore.rng import NoiseSource, derive_seed
from cmcore.sample.base import Sampler
from cmcore.tensors import to_uint8


def generate(
    sampler: Sampler,
    denoiser: Denoise,
    shape: Sequence[int],
    indices: Sequence[int],
    *,
    seed: int,
    batch: int,
    labels: Callable[[Sequence[int]], Tensor | None] | None = None,
    classes: int = 0,
    device: torch.device | str = "cpu",
    to_images: Callable[[Tensor], Tensor] = to_uint8,
) -> Iterator[Tensor]:
    """Yield uint8 images (B, C, H, W), B <= batch, for the image numbers `indices`, in order, on `device`.

    The random numbers of an image depend on (seed, its number) alone, not on the batch or on other images.

    `labels` maps image numbers to labels (B,) or rows of words (B, L). Without it a conditional model (classes > 0)
    gets uniform labels, from a source of their own: the noise is that of the unconditional model. A denoiser in
    training mode, whose dropout is on, is refused. `to_images` converts samples to uint8 images; for latents it decodes
    them.
    """
    if batch < 1:
        raise ValueError(f"generate: expected batch >= 1, got {batch}")
    if isinstance(denoiser, nn.Module) and denoiser.training:
        raise ValueError("generate: expected the denoiser in eval mode, got training mode; call denoiser.eval() first")
    for start in range(0, len(indices), batch):
        part = indices[start : start + batch]
        y = labels(part) if labels is not None else uniform_labels(part, seed, classes)
        x = sampler(denoiser, shape, NoiseSource(seed, part, device), y if y is None else y.to(device))
        yield to_images(x)


def uniform_labels(indices: Sequence[int], seed: int, classes: int) -> Tensor | None:
    """One label in [0, classes) per image number, int64 (B,); None for an unconditional model (classes = 0)."""
    return drawn_labels(indices, seed, (1,) * classes)


def drawn_labels(indices: Sequence[int], seed: int, counts: Sequence[int]) -> Tensor | None:
    """One label per image number, int64 (B,), with probabilities in proportion to `counts`; None without classes.

    Equal counts give the same labels, however large they are.
    """
    if not counts:
        return None
    ends = torch.tensor(counts).cumsum(0) // math.gcd(*counts)
    drawn = NoiseSource(derive_seed(seed, "labels"), indices).integers(int(ends[-1]))
    return torch.searchsorted(ends, drawn, right=True)


def drawn_captions(indices: Sequence[int], seed: int, captions: Tensor) -> Tensor:
    """One of the captions (N, L) per image number, all alike: rows of words int64 (B, L)."""
    return captions[NoiseSource(derive_seed(seed, "labels"), indices).integers(len(captions))]
