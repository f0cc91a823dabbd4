"""How networks lie in memory and are compiled. Nothing of this shows in names, shapes or values of their weights."""

import torch
from torch import nn

from cmcore.train.compiled import CLOCK
from cmcore.train.settings import TrainConfig


def arrange(net: nn.Module, config: TrainConfig) -> None:
    """Lay out and compile a network in place, as the settings say. A copy of it is laid out alike, and not compiled."""
    if config.channels_last:
        net.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue] (missing in the stubs)
    if config.compile:
        CLOCK.watch()
        # The same generator as without: student and target have to drop the same units, in whatever kernel that is.
        net.compile(options={"fallback_random": True, "triton.cudagraphs": config.cuda_graphs})
