"""Tiny random models as diffusers stores Stable Diffusion and PixArt: a network and its scheduler in a folder."""

from pathlib import Path
from typing import Any

import torch
from exports import diffusers_library

from cmcore.assemble.imports import IN_FOLDERS
from cmcore.nets.diffusers import MODELS

TINY: dict[str, dict[str, Any]] = {
    "unet": {
        "block_out_channels": [16, 32], "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
        "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"], "layers_per_block": 1, "cross_attention_dim": 12,
        "attention_head_dim": 2, "norm_num_groups": 4,
    },
    "pixart": {
        "num_attention_heads": 2, "attention_head_dim": 12, "cross_attention_dim": 24, "num_layers": 2,
        "caption_channels": 12,
    },
}  # fmt: skip
FILES = dict(zip(MODELS, IN_FOLDERS, strict=True))
SCHEDULE: dict[str, Any] = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}


def write_model(
    folder: Path, model: str = "unet", *, seed: int = 0, channels: int = 1, resolution: int = 8,
    arguments: dict[str, Any] | None = None, **scheduler: Any,
) -> Any:  # fmt: skip
    """Write such a folder, and return the library's network."""
    library, known = diffusers_library(), MODELS[model]
    torch.manual_seed(seed)
    shape = {"sample_size": resolution, "in_channels": channels, "out_channels": known.outputs * channels}
    net = getattr(library, known.library)(**{**shape, **TINY[model], **(arguments or {})}).eval()
    net.save_pretrained(folder / known.name, safe_serialization=True)
    library.DDIMScheduler(**{**SCHEDULE, "clip_sample": False, **scheduler}).save_pretrained(folder / "scheduler")
    return net
