"""A prepared data set: a memory map of uint8 images, their labels and the manifest."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from cmcore.data.errors import DataError


@dataclass(frozen=True)
class ImageData:
    """What `prepare` wrote. The images stay on disk until they are asked for."""

    images: np.ndarray  # uint8 (N, C, H, W), memory-mapped
    labels: np.ndarray  # int64 (N,)
    manifest: dict[str, Any]

    @classmethod
    def open(cls, folder: str | Path) -> Self:
        """Open a prepared folder.

        Raises:
            DataError: a file is missing or damaged, or they do not belong together.
        """
        folder = Path(folder)
        try:
            images = np.load(folder / "images.npy", mmap_mode="r", allow_pickle=False)
            labels = np.load(folder / "labels.npy", allow_pickle=False)
            manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
            expected = (manifest["count"], *manifest["shape"])
        except (OSError, ValueError, EOFError, KeyError, TypeError) as error:
            raise DataError(f"{folder}: is not a prepared data set ({error!r}); run the prepare stage") from error
        if images.shape != expected or images.dtype != np.uint8:
            raise DataError(f"{folder}/images.npy: expected uint8 {expected}, got {images.dtype} {images.shape}")
        if labels.shape != expected[:1] or labels.dtype != np.int64:
            raise DataError(f"{folder}/labels.npy: expected int64 {expected[:1]}, got {labels.dtype} {labels.shape}")
        return cls(images, labels, manifest)

    def __len__(self) -> int:
        return len(self.images)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        return self.images.shape[1:]

    @property
    def classes(self) -> int:
        """Number of classes; 0 where the images have no labels."""
        return self.manifest["classes"]

    @property
    def digest(self) -> str:
        """sha256 of the images and labels, as it was when they were prepared."""
        return self.manifest["sha256"]

    def batch(self, indices: Sequence[int] | np.ndarray) -> tuple[Tensor, Tensor]:
        """Images uint8 (B, C, H, W) and labels int64 (B,), copied into memory."""
        index = np.asarray(indices, np.int64)
        return torch.from_numpy(np.array(self.images[index])), torch.from_numpy(self.labels[index])
