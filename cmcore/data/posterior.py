"""From what is stored of a latent image to what a network sees.

An autoencoder gives a mean and a deviation. Training draws from this posterior at every step, mean + std z, and
normalises channel by channel (arXiv 2312.02696, App. A.3). Networks and samples live in these normalised latents; only
a decoder makes images of them.
"""

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from cmcore.rng import Draws

# What EDM2 takes the latents of Stability's autoencoder (sd-vae-ft-mse) for: NVlabs/edm2, training/encoders.py.
RAW_MEAN, RAW_STD = (5.81, 3.25, 0.12, -2.15), (4.17, 4.62, 3.71, 3.28)
FINAL_STD = 0.5


def normalisation() -> dict[str, Any]:
    """What a manifest says of latents, so that the prepared data explain themselves."""
    return {"raw_mean": list(RAW_MEAN), "raw_std": list(RAW_STD), "final_std": FINAL_STD}


def sample(stored: Tensor, draws: Draws, manifest: dict[str, Any]) -> Tensor:
    """Normalised latents (B, C, H, W) float32 from means and deviations (B, 2C, H, W)."""
    mean, std = stored.float().chunk(2, dim=1)
    raw = mean + std * draws.normal(mean.shape[1:], stream="latent")
    centre, width = (_per_channel(tuple(manifest[key]), raw.device) for key in ("raw_mean", "raw_std"))
    return (raw - centre) * (manifest["final_std"] / width)


def unnormalised(latents: Tensor, manifest: dict[str, Any]) -> Tensor:
    """Latents as an autoencoder knows them, from normalised ones (B, C, H, W): what a decoder takes."""
    centre, width = (_per_channel(tuple(manifest[key]), latents.device) for key in ("raw_mean", "raw_std"))
    return latents * (width / manifest["final_std"]) + centre


@lru_cache(maxsize=8)  # by device, so that no step waits for a copy
def _per_channel(values: tuple[float, ...], device: torch.device) -> Tensor:
    return torch.tensor(values, device=device)[:, None, None]
