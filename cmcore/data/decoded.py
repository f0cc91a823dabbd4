"""Images decoded from latents: samples, and whole data sets."""

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from cmcore.config import digest
from cmcore.data.images import LatentData
from cmcore.data.latent_space import normalisation, normalise, unnormalise


class Decoder(Protocol):
    """The decoder of an autoencoder."""

    @property
    def digest(self) -> str:
        """Hex digest of the weights."""
        ...

    def __call__(self, raw: Tensor) -> Tensor:
        """Latents (B, C, h, w) on the autoencoder's own scale -> uint8 images (B, 3, H, W)."""
        ...

    def encode(self, images: Tensor) -> Tensor:
        """uint8 images (B, 3, H, W) -> means and standard deviations (B, 2c, h, w) of their latents, on the CPU."""
        ...


@dataclass(frozen=True)
class Decoding:
    """The map from normalised latents (B, C, h, w) to uint8 images (B, 3, H, W)."""

    decoder: Decoder
    manifest: dict[str, Any]  # of the data set of latents

    @property
    def digest(self) -> str:
        """Hex digest of the decoder's weights."""
        return self.decoder.digest

    @property
    def described(self) -> dict[str, Any]:
        """The digest and the constants of the normalisation, for decoding.json."""
        return {"decoder": self.digest, **{key: self.manifest[key] for key in normalisation()}}

    def __call__(self, latents: Tensor) -> Tensor:
        return self.decoder(unnormalise(latents, self.manifest))

    def encode(self, images: Tensor) -> Tensor:
        """uint8 images (B, 3, H, W) -> their normalised latents (B, C, h, w), the means of the posteriors."""
        return normalise(self.decoder.encode(images).chunk(2, dim=1)[0].to(images.device), self.manifest)


class DecodedImages:
    """The decoded means of posteriors: an array-like of uint8 (N, 3, H, W) that decodes on access."""

    def __init__(self, data: LatentData, decoder: Decoder) -> None:
        self._data, self._decoder = data, decoder
        self.shape = (len(data), *self[:1].shape[1:])
        self.ndim = len(self.shape)

    def __len__(self) -> int:
        return len(self._data)

    def __getitem__(self, key: Any) -> np.ndarray:
        rows = np.arange(len(self))[key]
        mean = self._data.batch(np.atleast_1d(rows))[0].chunk(2, dim=1)[0]
        images = self._decoder(mean.to(torch.float32)).cpu().numpy()
        return images if np.ndim(rows) else images[0]


class DecodedData:
    """A data set of latents, seen as one of images."""

    def __init__(self, data: LatentData, decoder: Decoder) -> None:
        self.data, self.decoder, self.images = data, decoder, DecodedImages(data, decoder)
        self.labels, self.classes, self.captions, self.words = data.labels, data.classes, data.captions, data.words
        self.digest = digest([data.digest, decoder.digest])
