"""Optimisers and the learning rate as a function of images seen."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from cmcore.train.radam import FusedRAdam
from cmcore.train.settings import TrainConfig


def build_optimiser(parameters: Sequence[nn.Parameter], config: TrainConfig) -> torch.optim.Optimizer:
    """Adam or RAdam (arXiv 1908.03265), as the papers use them: no weight decay.

    On a GPU they are fused and keep their counters there.
    """
    on_gpu = parameters[0].is_cuda
    settings: dict[str, Any] = {"lr": config.lr, "betas": config.betas, "eps": config.eps}
    if config.optimiser == "adam":
        return torch.optim.Adam(parameters, **settings, fused=on_gpu or None)
    return FusedRAdam(parameters, **settings) if on_gpu else torch.optim.RAdam(parameters, **settings)


def learning_rate(config: TrainConfig, images: int, total: int = 0) -> float:
    """Linear warm-up, then constant, 1/sqrt (EDM2, arXiv 2312.02696, Eq. 67) or linear to zero at the end.

    Args:
        config: training settings.
        images: images seen before the step, since the start of the run or of its stage. With warm-up the first step has
            rate 0, as in the code of EDM, EDM2 and score_sde.
        total: images of the whole stage; by default those of the run. `lr_ref_images` shrinks in proportion.
    """
    share = total / config.total if total else 1.0
    lr = config.lr
    if config.lr_ramp_images:
        lr *= min(1.0, images / config.lr_ramp_images)
    if config.lr_decay == "inverse_sqrt":
        lr /= math.sqrt(max(images / (share * config.lr_ref_images), 1.0))
    elif config.lr_decay == "linear":
        end = total or config.total
        lr *= min(1.0, (end - images) / (end - share * config.lr_ref_images))
    return lr


def set_learning_rate(optimiser: torch.optim.Optimizer, lr: float) -> None:
    """The same rate for every parameter group."""
    for group in optimiser.param_groups:
        group["lr"] = lr
