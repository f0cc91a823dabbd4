"""How networks lie in memory and are compiled. Nothing of this shows in names, shapes or values of their weights."""

import torch
from torch import nn

from cmcore.dual import each
from cmcore.layers.blocks import blocks
from cmcore.train.compiled import CLOCK
from cmcore.train.settings import TrainConfig
from cmcore.train.workers import ALONE, Worker


def arrange(net: nn.Module, config: TrainConfig, worker: Worker = ALONE) -> None:
    """Lay out and compile a network in place, as the settings say. A copy of it is laid out alike, and not compiled."""
    if config.channels_last and worker.shard:  # its weights are rows in one piece of memory: the images lead instead
        net.register_forward_pre_hook(lambda _, inputs: (each(_channels_last, inputs[0]), *inputs[1:]))
    elif config.channels_last:
        net.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue] (missing in the stubs)
    if config.compile:
        CLOCK.watch()
        # The gradients of a compiled module all come at its end. Several workers exchange those of a block while the
        # blocks before it are still at work.
        together = worker.world == 1 or config.cuda_graphs
        for module in [net] if together else blocks(net) or [net]:
            # The same generator as without: student and target have to drop the same units, in whatever kernel that is.
            module.compile(options={"fallback_random": True, "triton.cudagraphs": config.cuda_graphs})


def _channels_last(images: torch.Tensor) -> torch.Tensor:
    return images.contiguous(memory_format=torch.channels_last)
