"""Stands for diffusers where it is not installed: a folder with weights goes in, a tiny autoencoder comes out."""

import json
from pathlib import Path
from types import SimpleNamespace

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

WEIGHTS = "diffusion_pytorch_model.safetensors"


class AutoencoderKL(nn.Module):
    """A decoder of one linear layer that makes 2x2 pixels of every latent."""

    def __init__(self, latent_channels: int = 4) -> None:
        super().__init__()
        self.config = {"latent_channels": latent_channels}
        self.layers = nn.Sequential(nn.Conv2d(latent_channels, 12, 1), nn.PixelShuffle(2))

    def save_pretrained(self, folder: Path) -> None:
        """Write a folder as diffusers does."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.json").write_text(json.dumps(self.config))
        save_file(self.state_dict(), folder / WEIGHTS)

    @classmethod
    def from_pretrained(cls, folder: str, **options: bool) -> tuple["AutoencoderKL", dict]:
        """Read it back; only as the edge asks for it."""
        assert options == {
            "local_files_only": True, "use_safetensors": True, "low_cpu_mem_usage": False, "output_loading_info": True,
        }  # fmt: skip
        net = cls(**json.loads((Path(folder) / "config.json").read_text()))
        missing = net.load_state_dict(load_file(Path(folder) / WEIGHTS), strict=False).missing_keys
        return net, {"missing_keys": missing}

    def encode(self, images: Tensor) -> SimpleNamespace:
        """Means and deviations of latents."""
        assert images.dtype == torch.float32
        mean = nn.functional.pixel_unshuffle(images, 2)[:, : self.config["latent_channels"]]
        return SimpleNamespace(latent_dist=SimpleNamespace(mean=mean, std=0.1 + 0 * mean))

    def decode(self, latents: Tensor) -> SimpleNamespace:
        """Images, about within [0, 1]."""
        assert latents.dtype == torch.float32
        return SimpleNamespace(sample=self.layers(latents))


def write(folder: Path, seed: int = 0) -> Path:
    """An autoencoder with random weights, of which most images lie within [0, 1]."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = AutoencoderKL()
        nn.init.normal_(net.layers[0].weight, std=0.02)
        nn.init.uniform_(net.layers[0].bias, 0.3, 0.7)
    net.save_pretrained(folder)
    return folder
