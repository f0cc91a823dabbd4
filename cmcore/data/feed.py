"""Batches of a prepared data set on a device, with copies that overlap its computation."""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from cmcore.data.images import Prepared

RESIDENT = 0.2  # share of a device's free memory that a resident data set may take
Feed = Callable[[np.ndarray], tuple[Tensor, Tensor]]
"""Rows (B,) of the data set -> uint8 images (B, C, H, W) and int64 labels (B,) or (B, L), on the device."""


def feed(data: Prepared, device: torch.device | str) -> Feed:
    """Batches by row: from the device's memory where the data set fits, else copied asynchronously."""
    device = torch.device(device)
    if device.type == "cpu":
        return data.batch
    if data.images.nbytes <= RESIDENT * torch.cuda.mem_get_info(device)[0]:
        return resident(data, device)

    def batch(rows: np.ndarray) -> tuple[Tensor, Tensor]:
        images, labels = data.batch(rows)
        return sent(images, device), sent(labels, device)

    return batch


def resident(data: Prepared, device: torch.device) -> Feed:
    """Batches of a data set that is copied whole to the device, once."""
    images, labels = (torch.from_numpy(np.array(part)).to(device) for part in (data.images, data.labels))

    def batch(rows: np.ndarray) -> tuple[Tensor, Tensor]:
        index = sent(torch.from_numpy(np.asarray(rows, np.int64)), device)
        return images[index], labels[index]

    return batch


def sent(tensor: Tensor, device: torch.device) -> Tensor:
    """The tensor on the device. A copy from pinned memory does not block the host."""
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)
