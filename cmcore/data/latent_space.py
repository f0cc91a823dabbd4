"""The latent space that networks see: draws from an autoencoder's posterior, normalised channel by channel.

An autoencoder encodes an image as a mean and a standard deviation. Every training step draws mean + std z from this
posterior and normalises it (arXiv 2312.02696, App. A.3). Samples are normalised latents too; a decoder makes images of
them.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from cmcore.rng import Draws

# Statistics of the latents of Stability's autoencoder (sd-vae-ft-mse), as in NVlabs/edm2, training/encoders.py.
RAW_MEAN, RAW_STD = (5.81, 3.25, 0.12, -2.15), (4.17, 4.62, 3.71, 3.28)
FINAL_STD = 0.5


def normalisation(raw_mean: Sequence[float] = RAW_MEAN, raw_std: Sequence[float] = RAW_STD) -> dict[str, Any]:
    """The constants of the normalisation, for the manifest of a data set; by default of Stability's autoencoder."""
    return {"raw_mean": list(raw_mean), "raw_std": list(raw_std), "final_std": FINAL_STD}


def sample_posterior(stored: Tensor, draws: Draws, manifest: dict[str, Any]) -> Tensor:
    """Normalised latents (B, C, H, W) float32 from means and standard deviations (B, 2C, H, W)."""
    mean, std = stored.float().chunk(2, dim=1)
    return normalise(mean + std * draws.normal(mean.shape[1:], stream="latent"), manifest)


def normalise(raw: Tensor, manifest: dict[str, Any]) -> Tensor:
    """Normalised latents (B, C, H, W) from those on the autoencoder's own scale."""
    centre, width = (_per_channel(tuple(manifest[key]), raw.device) for key in ("raw_mean", "raw_std"))
    return (raw - centre) * (manifest["final_std"] / width)


def unnormalise(latents: Tensor, manifest: dict[str, Any]) -> Tensor:
    """Latents on the autoencoder's own scale, the input of its decoder, from normalised ones (B, C, H, W)."""
    centre, width = (_per_channel(tuple(manifest[key]), latents.device) for key in ("raw_mean", "raw_std"))
    return latents * (width / manifest["final_std"]) + centre


@lru_cache(maxsize=8)  # by device, so that no step waits for a copy
def _per_channel(values: tuple[float, ...], device: torch.device) -> Tensor:
    return torch.tensor(values, device=device)[:, None, None]
