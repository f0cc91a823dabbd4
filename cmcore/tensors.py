"""Per-sample tensor arithmetic, and the shape legend that the whole package uses.

Shape legend: B batch, C channels, H height, W width, N number of grid points, D feature dimension, K number of classes.
Images are (B, C, H, W), scaled to [-1, 1] as floats and to 0..255 as uint8. Times and noise levels are (B,).
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor

# Of mixed precision on the meta device, for which PyTorch has no autocast: the 16-bit type; None: full precision.
meta_dtype: ContextVar[torch.dtype | None] = ContextVar("meta_dtype", default=None)


def full_precision(device: torch.device) -> AbstractContextManager[object]:
    """A block that computes in the precision of its tensors, under any autocast."""
    return meta_precision(None) if device.type == "meta" else torch.autocast(device.type, enabled=False)


@contextmanager
def meta_precision(dtype: torch.dtype | None) -> Iterator[None]:
    """A block with another `meta_dtype`."""
    before = meta_dtype.set(dtype)
    try:
        yield
    finally:
        meta_dtype.reset(before)


def expand_like(v: Any, x: Any) -> Any:
    """View per-sample values v (B,) as (B, 1, ..., 1) in the dtype of x (B, ...), ready to multiply it."""
    if v.ndim != 1 or v.shape[0] != x.shape[0]:
        raise ValueError(f"per-sample values: expected shape ({x.shape[0]},), got {tuple(v.shape)}")
    return v.to(x.dtype).reshape(-1, *[1] * (x.ndim - 1))


def sum_per_sample(x: Tensor) -> Tensor:
    """Sum over everything but the batch: (B, ...) -> (B,)."""
    return x.flatten(1).sum(1)


def mean_per_sample(x: Tensor) -> Tensor:
    """Mean over everything but the batch: (B, ...) -> (B,)."""
    return x.flatten(1).mean(1)


def norm_per_sample(x: Tensor) -> Tensor:
    """Euclidean norm over everything but the batch: (B, ...) -> (B,)."""
    return torch.linalg.vector_norm(x.flatten(1), dim=1)


def to_float(images: Tensor) -> Tensor:
    """uint8 0..255 -> float32 in [-1, 1]."""
    return images.to(torch.float32) / 127.5 - 1


def to_uint8(images: Tensor) -> Tensor:
    """Float images in [-1, 1] -> uint8, by the truncation of EDM's generate.py (arXiv 2206.00364), so FIDs compare."""
    return (images * 127.5 + 128).clip(0, 255).to(torch.uint8)
