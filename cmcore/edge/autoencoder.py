"""The decoders of latents: of the data's own codec, and Stable Diffusion's autoencoder through diffusers."""

import contextlib
import hashlib
import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cmcore.bounded import check_safetensors, parse_json
from cmcore.config import ConfigError
from cmcore.data.codec import decoding_of
from cmcore.data.decoded import DecodedData, Decoding
from cmcore.data.images import ImageData, open_data, open_images
from cmcore.data.settings import LATENT_CHANNELS
from cmcore.edge.torchvision_ops import import_torchvision
from cmcore.errors import DataError, reason
from cmcore.evaluate.settings import DecoderConfig
from cmcore.tensors import to_uint8

FILES = ("config.json", "diffusion_pytorch_model.safetensors")  # as diffusers writes them
DECODING = "decoding.json"
_BATCH = 8  # images at once: at 512x512 enough to occupy a device, and few enough for its memory


class Autoencoder:
    """Latents (B, 4, h, w) -> uint8 images (B, 3, H, W), in float32 and clipped as in EDM2 (training/encoders.py).

    EDM2's dataset tool encodes images in [0, 1], so decoded images are in [0, 1] too.
    """

    def __init__(self, net: Any, digest: str, device: torch.device | str = "cpu") -> None:
        self._net, self.digest, self._device = net.eval().requires_grad_(False).to(device), digest, device

    @torch.no_grad()
    def __call__(self, raw: Tensor) -> Tensor:
        parts = raw.to(self._device, torch.float32).split(_BATCH)
        return torch.cat([(self._net.decode(part).sample.clamp(0, 1) * 255).to(torch.uint8) for part in parts])


def check_decoder(config: DecoderConfig) -> None:
    """Check that the decoder's files and diffusers are present.

    Raises:
        ConfigError: one of them is missing.
    """
    folder = Path(config.path)
    absent = [name for name in FILES if not (folder / name).is_file()]
    if not config.path or absent:
        raise ConfigError(
            "eval.decoder.path",
            f"expected a folder with {' and '.join(FILES)} of a diffusers AutoencoderKL, "
            f"got {config.path!r}{f', without {absent[0]}' if config.path else ''}",
        )
    if importlib.util.find_spec("diffusers") is None:
        raise ConfigError("eval.decoder", "needs diffusers, which is not installed: pip install -e '.[latents]'")


def load_decoder(config: DecoderConfig, device: torch.device | str = "cpu") -> Autoencoder:
    """The decoder in a local folder; nothing is downloaded, and nothing in the files is executed.

    Raises:
        ConfigError: a file is missing, or diffusers.
        DataError: the checksum differs, or the files are not such a decoder.
    """
    check_decoder(config)
    with contextlib.suppress(ImportError):  # diffusers imports it where it is installed
        import_torchvision()
    from diffusers import AutoencoderKL  # pyright: ignore[reportMissingImports]

    folder = Path(config.path)
    with (folder / FILES[1]).open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if config.sha256 and digest != config.sha256:
        raise DataError(f"{folder / FILES[1]}: expected sha256 {config.sha256} (eval.decoder.sha256), got {digest}")
    check_safetensors(folder / FILES[1])
    parse_json((folder / FILES[0]).read_bytes(), str(folder / FILES[0]))
    try:
        loaded: Any = AutoencoderKL.from_pretrained(
            str(folder), local_files_only=True, use_safetensors=True, low_cpu_mem_usage=False, output_loading_info=True
        )
    except Exception as error:  # diffusers raises many kinds for files that do not fit
        raise DataError(f"{folder}: cannot be read as an AutoencoderKL ({reason(error, 300)})") from error
    net, found = loaded
    if found["missing_keys"] or net.config["latent_channels"] != LATENT_CHANNELS:
        wrong = f"without {found['missing_keys'][0]}" if found["missing_keys"] else f"{net.config['latent_channels']}"
        raise DataError(
            f"{folder}: expected all weights of an AutoencoderKL of {LATENT_CHANNELS} channels, got {wrong}"
        )
    return Autoencoder(net, digest, device)


def image_converter(
    folder: Path, config: DecoderConfig, device: torch.device | str = "cpu"
) -> Callable[[Tensor], Tensor] | None:
    """The map from samples of networks trained on a prepared folder to uint8 images; None where none is known."""
    data = open_data(folder)
    if isinstance(data, ImageData):
        return to_uint8
    if (decoding := decoding_of(folder, device)) is not None:
        return decoding
    return Decoding(load_decoder(config, device), data.manifest) if config.path else None


def images_of(folder: Path, config: DecoderConfig, device: torch.device | str = "cpu") -> ImageData | DecodedData:
    """A prepared data set as images, decoded where it holds latents alone."""
    data = open_images(folder) or open_data(folder)
    return data if isinstance(data, ImageData) else DecodedData(data, load_decoder(config, device))


def save_decoding(images: ImageData | DecodedData, out: Path) -> None:
    """Write decoding.json beside a reference whose images were decoded from latents."""
    if isinstance(images, DecodedData):
        described = Decoding(images.decoder, images.data.manifest).described
        (out / DECODING).write_text(json.dumps(described, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def load_decoding(reference: Path, config: DecoderConfig, device: torch.device | str = "cpu") -> Decoding | None:
    """The decoding of samples that matches the reference's; None where the reference is of images.

    Raises:
        DataError: the decoder is not that of the reference, or `load_decoder` cannot load it.
    """
    if not (reference / DECODING).exists():
        return None
    noted = json.loads((reference / DECODING).read_text(encoding="utf-8"))
    decoder = load_decoder(config, device)
    if decoder.digest != noted["decoder"]:
        raise DataError(
            f"eval.decoder.path: expected the decoder of the reference, with weights {noted['decoder']}, got "
            f"{decoder.digest}; run the reference stage again"
        )
    return Decoding(decoder, noted)
