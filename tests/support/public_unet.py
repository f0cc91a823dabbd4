"""A tiny random model as diffusers stores Stable Diffusion: its network and its scheduler in a folder."""

from pathlib import Path
from typing import Any

import torch
from exports import diffusers_library

TINY: dict[str, Any] = {
    "block_out_channels": [16, 32], "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"], "layers_per_block": 1, "cross_attention_dim": 12,
    "attention_head_dim": 2, "norm_num_groups": 4,
}  # fmt: skip
SCHEDULE: dict[str, Any] = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}


def write_model(folder: Path, *, seed: int = 0, channels: int = 1, resolution: int = 8, **scheduler: Any) -> Any:
    """Write such a folder, and return the library's network."""
    library = diffusers_library()
    torch.manual_seed(seed)
    net = library.UNet2DConditionModel(
        sample_size=resolution, in_channels=channels, out_channels=channels, **TINY
    ).eval()
    net.save_pretrained(folder / "unet", safe_serialization=True)
    library.DDIMScheduler(**{**SCHEDULE, "clip_sample": False, **scheduler}).save_pretrained(folder / "scheduler")
    return net
