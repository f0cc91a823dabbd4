"""Codecs: what makes latents of images, and images of latents."""

import json
from pathlib import Path
from typing import NamedTuple, Protocol

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from cmcore.bounded import check_safetensors, parse_json
from cmcore.data.decoded import DecodedData, Decoder, Decoding
from cmcore.data.images import TEST, ImageData, LatentData, open_data, open_images, read_manifest
from cmcore.data.mel import HeardData
from cmcore.errors import DataError, reason
from cmcore.layers.autoencoder import KLAutoencoder, Shape
from cmcore.layers.classifier import weights_digest
from cmcore.tensors import to_float, to_uint8

CODEC, PUBLIC = "codec.safetensors", "codec"  # beside the latents: the trained codec, or the folder of a public one
_BATCH = 64  # images at once


class Encoder(Protocol):
    """The encoder of an autoencoder."""

    @property
    def digest(self) -> str:
        """Hex digest of the weights."""
        ...

    def encode(self, images: Tensor) -> Tensor:
        """uint8 images (B, C, H, W) -> means and standard deviations (B, 2c, h, w) float32 on the CPU."""
        ...

    def save(self, folder: Path) -> None:
        """Write all that the decoder is, beside the latents."""
        ...


class Codec:
    """A trained autoencoder. Its latents are on a scale of their own; `latent_space` normalises them."""

    def __init__(self, net: KLAutoencoder, device: torch.device | str = "cpu") -> None:
        self.net, self._device = net.eval().requires_grad_(False).to(device), device
        self.digest = weights_digest(net)

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """uint8 images (B, C, H, W) -> means and standard deviations (B, 2c, h, w) float32 on the CPU."""
        mean, log_variance = self.net.encode(to_float(images.to(self._device)))
        return torch.cat([mean, (0.5 * log_variance).exp()], dim=1).cpu()

    @torch.no_grad()
    def __call__(self, raw: Tensor) -> Tensor:
        """Latents (B, c, h, w) -> uint8 images (B, C, H, W) on the device."""
        parts = raw.to(self._device, torch.float32).split(_BATCH)
        return torch.cat([to_uint8(self.net.decode(part)) for part in parts])

    def save(self, folder: Path) -> None:
        """Write a self-describing safetensors file, with one metadata key: several would be in random order."""
        metadata = {"codec": json.dumps(self.net.shape._asdict(), sort_keys=True)}
        tensors = {key: value.cpu().contiguous() for key, value in self.net.state_dict().items()}
        save_file(tensors, folder / CODEC, metadata)

    @classmethod
    def load(cls, path: Path, device: torch.device | str = "cpu") -> "Codec":
        """Read a file that `save` wrote.

        Raises:
            DataError: it is missing, or no codec.
        """
        check_safetensors(path)
        try:
            with safe_open(path, "pt") as file:
                described = parse_json((file.metadata() or {})["codec"], f"{path}: codec")
                state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a mapping)
            with torch.device("meta"):  # its size is that of the weights, whatever the file says
                net = KLAutoencoder(Shape(**described))
            net.load_state_dict(state, assign=True)
        except DataError:
            raise
        except (SafetensorError, KeyError, TypeError, ValueError, AttributeError, RuntimeError, OSError) as error:
            raise DataError(f"{path}: expected a codec written by the prepare stage ({reason(error)})") from error
        return cls(net, device)


class Reconstruction(NamedTuple):
    """Images, and what a codec makes of their latents, row by row."""

    images: ImageData
    decoded: DecodedData | HeardData


def reconstruction(folder: Path, decoder: Decoder) -> Reconstruction:
    """That of the test images of a prepared folder with a codec, of the training images where there are no others."""
    latents = open_data(_measured(folder))
    assert isinstance(latents, LatentData)
    return Reconstruction(_images(folder), DecodedData(latents, decoder))


def resynthesis(folder: Path) -> Reconstruction:
    """What the mel codec makes of the same images of a prepared folder of sounds."""
    images = _images(folder)
    return Reconstruction(images, HeardData(images))


def _measured(folder: Path) -> Path:
    return folder / TEST if (folder / TEST).is_dir() else folder


def _images(folder: Path) -> ImageData:
    images = open_images(_measured(folder))
    assert images is not None
    return images


def decoding_of(folder: Path, device: torch.device | str = "cpu") -> Decoding | None:
    """The decoding of samples of networks trained on a prepared folder; None where no trained codec belongs to it."""
    manifest = read_manifest(folder)
    kind = manifest.get("codec", {}).get("kind")
    return Decoding(Codec.load(folder / CODEC, device), manifest) if kind == "kl" else None
