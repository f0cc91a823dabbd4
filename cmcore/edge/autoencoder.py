"""The decoders of latents: of the data's own codec, and Stable Diffusion's autoencoder through diffusers."""

import contextlib
import hashlib
import importlib.util
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cmcore.bounded import check_safetensors, parse_json
from cmcore.config import ConfigError
from cmcore.data.codec import PUBLIC, Reconstruction, decoding_of, reconstruction, resynthesis
from cmcore.data.decoded import DecodedData, Decoding
from cmcore.data.images import ImageData, open_data, open_images, read_manifest
from cmcore.data.mel import SOUND
from cmcore.data.settings import LATENT_CHANNELS, DataConfig
from cmcore.errors import DataError, reason
from cmcore.evaluate.settings import DecoderConfig
from cmcore.tensors import to_float, to_uint8
from cmcore.torchvision_ops import import_torchvision

FILES = ("config.json", "diffusion_pytorch_model.safetensors")  # as diffusers writes them
DECODING = "decoding.json"
_BATCH = 8  # images at once: at 512x512 enough to occupy a device, and few enough for its memory


class Autoencoder:
    """Latents (B, c, h, w) -> uint8 images (B, 3, H, W), in float32 and clipped as in EDM2 (training/encoders.py).

    Args:
        net: the AutoencoderKL.
        folder: of its files.
        digest: of its weights.
        device: of the computation.
        unit: its images are in [0, 1], as EDM2's dataset tool encodes them; else in [-1, 1], as it was trained.
    """

    def __init__(
        self, net: Any, folder: Path, digest: str, device: torch.device | str = "cpu", *, unit: bool = True
    ) -> None:
        self._net, self.digest, self._device = net.eval().requires_grad_(False).to(device), digest, device
        self._folder, self._unit = folder, unit

    @torch.no_grad()
    def __call__(self, raw: Tensor) -> Tensor:
        parts = raw.to(self._device, torch.float32).split(_BATCH)
        return torch.cat([self._uint8(self._net.decode(part).sample) for part in parts])

    def _uint8(self, images: Tensor) -> Tensor:
        return (images.clamp(0, 1) * 255).to(torch.uint8) if self._unit else to_uint8(images)

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """uint8 images (B, 3, H, W) -> means and standard deviations (B, 2c, h, w) float32 on the CPU."""
        found = []
        for part in images.split(_BATCH):
            x = to_float(part.to(self._device))
            posterior = self._net.encode((x + 1) / 2 if self._unit else x).latent_dist
            found.append(torch.cat([posterior.mean, posterior.std], dim=1).cpu())
        return torch.cat(found)

    def save(self, folder: Path) -> None:
        """Copy its files beside the latents, so that these are whole."""
        (folder / PUBLIC).mkdir()
        for name in FILES:
            shutil.copyfile(self._folder / name, folder / PUBLIC / name)


def check_decoder(config: DecoderConfig, where: str = "eval.decoder") -> None:
    """Check that the decoder's files and diffusers are present; `where` is the section of the parameters.

    Raises:
        ConfigError: one of them is missing.
    """
    folder = Path(config.path)
    absent = [name for name in FILES if not (folder / name).is_file()]
    if not config.path or absent:
        raise ConfigError(
            f"{where}.path",
            f"expected a folder with {' and '.join(FILES)} of a diffusers AutoencoderKL, "
            f"got {config.path!r}{f', without {absent[0]}' if config.path else ''}",
        )
    if importlib.util.find_spec("diffusers") is None:
        raise ConfigError(where, "needs diffusers, which is not installed: pip install -e '.[latents]'")


def check_decoders(data: DataConfig, decoder: DecoderConfig) -> None:
    """A ConfigError where the codec or the decoder that parameters name is not there."""
    if decoder.path:
        check_decoder(decoder)
    if data.codec is not None and data.codec.kind == "diffusers":
        check_decoder(DecoderConfig(path=data.codec.path), "data.codec")


def load_decoder(
    config: DecoderConfig, device: torch.device | str = "cpu", *, channels: int = LATENT_CHANNELS, own: bool = False
) -> Autoencoder:
    """The decoder in a local folder; nothing is downloaded, and nothing in the files is executed.

    Args:
        config: of the folder.
        device: of the decoder.
        channels: that its latents are expected to have.
        own: it is the codec of the data (`data.codec`), which has encoded them here.

    Raises:
        ConfigError: a file is missing, or diffusers.
        DataError: the checksum differs, or the files are not such a decoder.
    """
    where = "data.codec" if own else "eval.decoder"
    check_decoder(config, where)
    with contextlib.suppress(ImportError):  # diffusers imports it where it is installed
        import_torchvision()
    from diffusers import AutoencoderKL  # pyright: ignore[reportMissingImports]

    folder = Path(config.path)
    with (folder / FILES[1]).open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if config.sha256 and digest != config.sha256:
        raise DataError(f"{folder / FILES[1]}: expected sha256 {config.sha256} ({where}.sha256), got {digest}")
    check_safetensors(folder / FILES[1])
    parse_json((folder / FILES[0]).read_bytes(), str(folder / FILES[0]))
    try:
        loaded: Any = AutoencoderKL.from_pretrained(
            str(folder), local_files_only=True, use_safetensors=True, low_cpu_mem_usage=False, output_loading_info=True
        )
    except Exception as error:  # diffusers raises many kinds for files that do not fit
        raise DataError(f"{folder}: cannot be read as an AutoencoderKL ({reason(error, 300)})") from error
    net, found = loaded
    if found["missing_keys"] or net.config["latent_channels"] != channels:
        wrong = f"without {found['missing_keys'][0]}" if found["missing_keys"] else f"{net.config['latent_channels']}"
        raise DataError(f"{folder}: expected all weights of an AutoencoderKL of {channels} channels, got {wrong}")
    return Autoencoder(net, folder, digest, device, unit=not own)


def own_decoding(folder: Path, device: torch.device | str = "cpu") -> Decoding | None:
    """The decoding by the codec of a prepared folder; None where it has none."""
    manifest = read_manifest(folder)
    if manifest.get("codec", {}).get("kind") != "diffusers":
        return decoding_of(folder, device)
    config = DecoderConfig(path=str(folder / PUBLIC), sha256=manifest["codec"]["digest"])
    return Decoding(load_decoder(config, device, channels=manifest["shape"][0], own=True), manifest)


def reconstructions_of(folder: Path, device: torch.device | str = "cpu") -> dict[str, Reconstruction]:
    """What the codecs of a prepared folder make of images, by name: its autoencoder, and of sounds the mel codec."""
    found: dict[str, Reconstruction] = {}
    if (decoding := own_decoding(folder, device)) is not None:
        found["reconstruction"] = reconstruction(folder, decoding.decoder)
    if SOUND in read_manifest(folder):
        found["resynthesis"] = resynthesis(folder)
    return found


def image_converter(
    folder: Path, config: DecoderConfig, device: torch.device | str = "cpu"
) -> Callable[[Tensor], Tensor] | None:
    """The map from samples of networks trained on a prepared folder to uint8 images; None where none is known."""
    data = open_data(folder)
    if isinstance(data, ImageData):
        return to_uint8
    if (decoding := own_decoding(folder, device)) is not None:
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
