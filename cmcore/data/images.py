"""A prepared data set: a memory-mapped array of images or latents, the labels and the manifest."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from cmcore.bounded import parse_json
from cmcore.data.latent_space import sample_posterior
from cmcore.data.rows import take
from cmcore.diffusion.words import Conditional, Text, Words
from cmcore.errors import DataError, reason
from cmcore.rng import Draws
from cmcore.tensors import to_float

ARRAYS = {"images": "images.npy", "latents": "latents.npy"}
ENCODED = "images"  # of the manifest of latents: that of the images beside them, which a codec has encoded
MANIFEST, WORDS = "manifest.json", "words.npy"
NUMBERS, VECTORS, CAPTIONS = "text.npy", "encoded.npy", "captions.json"  # of encoded captions; see `add_text`
TEST = "test"  # folder of the test images, beside the training images
DTYPES = {"images": (np.dtype(np.uint8),), "latents": (np.dtype(np.float32), np.dtype(np.float16))}


@dataclass(frozen=True)
class Prepared:
    """The output of the prepare stage. Rows are read from disk on access."""

    images: np.ndarray  # (N, ...), memory-mapped, in the stored form
    labels: np.ndarray  # int64 (N,); of `seen` perhaps (N, L)
    manifest: dict[str, Any]
    captions: np.ndarray | None = None  # int64 (N, L), rows of words (diffusion/words.py); None: there are none
    numbers: np.ndarray | None = None  # int64 (N, 1), of encoded captions (layers/text.py); None: they are not encoded

    def __len__(self) -> int:
        return len(self.images)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of a network's input."""
        return tuple(self.manifest["shape"])

    @property
    def classes(self) -> int:
        """Number of classes; 0 where the images have no labels."""
        return self.manifest["classes"]

    @property
    def words(self) -> Words | None:
        """The words of the captions; None where there are none."""
        described = self.manifest.get("words")
        return None if described is None else Words(tuple(described["vocabulary"]), described["length"])

    @property
    def text(self) -> Text | None:
        """What has encoded the captions; None where nothing has."""
        described = self.manifest.get("text")
        return None if described is None else Text(**described)

    @property
    def told(self) -> np.ndarray | None:
        """What networks see of captions: their numbers where they are encoded, else rows of words; None without any."""
        return self.captions if self.numbers is None else self.numbers

    @property
    def spelled(self) -> np.ndarray | None:
        """The words of encoded captions by their numbers, int64 (M, L); None where they are not encoded."""
        if self.numbers is None or self.captions is None:
            return None
        rows = np.zeros((int(self.numbers.max()) + 1, self.captions.shape[1]), np.int64)
        rows[self.numbers[:, 0]] = self.captions
        return rows

    @property
    def digest(self) -> str:
        """sha256 of array, labels and captions at the time of preparation."""
        return self.manifest["sha256"]

    def seen(self, conditional: Conditional) -> Self:
        """The data set whose labels are what networks see: captions (N, L), or their numbers, where they read them.

        A DataError where there are no captions.
        """
        if conditional != "words":
            return self
        if self.told is None:
            raise DataError("conditional: expected images with captions, got a data set without; see `data`")
        return replace(self, labels=self.told)

    def batch(self, indices: Sequence[int] | np.ndarray) -> tuple[Tensor, Tensor]:
        """Stored rows (B, ...) and their labels int64 (B,) or (B, L), copied into memory."""
        index = np.asarray(indices, np.int64)
        return torch.from_numpy(take(self.images, index)), torch.from_numpy(self.labels[index])

    def normalised(self, stored: Tensor, draws: Draws) -> Tensor:
        """The network's input for stored rows: float32 (B, C, H, W), on the device of `stored`."""
        raise NotImplementedError


class ImageData(Prepared):
    """Images, uint8 (N, C, H, W)."""

    @classmethod
    def open(cls, folder: str | Path) -> Self:
        """Open a prepared folder of images; latents have to be decoded first and are refused.

        Raises:
            DataError: a file is missing or damaged, or the files do not belong together.
        """
        data = open_data(folder)
        if not isinstance(data, cls):
            raise DataError(f"{folder}: expected images, got latents; only training and evaluation work with both")
        return data

    def normalised(self, stored: Tensor, draws: Draws) -> Tensor:
        """Pixels in [-1, 1]."""
        del draws
        return to_float(stored)


class LatentData(Prepared):
    """Means and standard deviations of latents, (N, 2C, H, W) float32 or float16."""

    def normalised(self, stored: Tensor, draws: Draws) -> Tensor:
        """One draw from each posterior, normalised."""
        return sample_posterior(stored, draws, self.manifest)


def read_captions(folder: Path, name: str = WORDS) -> np.ndarray | None:
    """The captions of a prepared folder, int64 (N, L), or with NUMBERS (N, 1); None where there are none."""
    return np.load(folder / name, allow_pickle=False) if (folder / name).exists() else None


def read_text(folder: Path) -> tuple[list[str], np.ndarray] | None:
    """The different captions of a prepared folder, and their vectors (1 + M, T, D) after those of the empty one."""
    if not (folder / VECTORS).exists():
        return None
    captions = parse_json((folder / CAPTIONS).read_bytes(), str(folder / CAPTIONS))
    return list(map(str, captions)), np.load(folder / VECTORS, allow_pickle=False)


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a prepared folder; a DataError where there is none."""
    try:
        return parse_json((folder / MANIFEST).read_bytes(), f"{folder}/{MANIFEST}")
    except (OSError, ValueError) as error:
        raise DataError(f"{folder}: is not a prepared data set ({reason(error)}); run the prepare stage") from error


def open_images(folder: str | Path) -> ImageData | None:
    """The images of a prepared folder, of latents those that a codec has encoded; None where there are latents alone.

    Raises:
        DataError: a file is missing or damaged, or the files do not belong together.
    """
    manifest = read_manifest(Path(folder))
    if ENCODED in manifest:
        manifest = {key: value for key, value in manifest.items() if key != "kind"} | manifest[ENCODED]
    data = _open(Path(folder), manifest)
    return data if isinstance(data, ImageData) else None


def open_data(folder: str | Path) -> ImageData | LatentData:
    """Open a prepared folder: what networks see of it, images or latents.

    Raises:
        DataError: a file is missing or damaged, or the files do not belong together.
    """
    return _open(Path(folder), read_manifest(Path(folder)))


def _open(folder: Path, manifest: dict[str, Any]) -> ImageData | LatentData:
    try:
        kind = manifest.get("kind", "images")
        images, labels = (
            np.load(folder / name, mmap_mode="r", allow_pickle=False) for name in (ARRAYS[kind], "labels.npy")
        )
        count, channels, *size = manifest["count"], *manifest["shape"]
        described = manifest.get("words")
        captions = None if described is None else read_captions(folder)
        numbers = read_captions(folder, NUMBERS) if "text" in manifest else None
        rows = (count, described["length"]) if described is not None else ()
    except (OSError, ValueError, EOFError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{folder}: is not a prepared data set ({reason(error)}); run the prepare stage") from error
    expected = (count, channels if kind == "images" else 2 * channels, *size)
    if images.shape != expected or images.dtype not in DTYPES[kind]:
        wanted = " or ".join(map(str, DTYPES[kind]))
        raise DataError(f"{folder}/{ARRAYS[kind]}: expected {wanted} {expected}, got {images.dtype} {images.shape}")
    if labels.shape != expected[:1] or labels.dtype != np.int64:
        raise DataError(f"{folder}/labels.npy: expected int64 {expected[:1]}, got {labels.dtype} {labels.shape}")
    if described is not None and (captions is None or captions.shape != rows or captions.dtype != np.int64):
        got = "nothing" if captions is None else f"{captions.dtype} {captions.shape}"
        raise DataError(f"{folder}/{WORDS}: expected int64 {rows}, got {got}")
    return (ImageData if kind == "images" else LatentData)(images, np.array(labels), manifest, captions, numbers)
