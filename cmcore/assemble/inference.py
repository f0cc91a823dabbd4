"""How a trained network computes samples: on a GPU as it was trained, compiled and in half precision; on a CPU plainly.

On the CPU samples are float32 and eager whatever the run's settings, so that the same weights give the same bits.
"""

from dataclasses import replace
from typing import Any

import torch
from torch import nn

from cmcore.diffusion.precond import Denoiser
from cmcore.train.compiled import or_plain
from cmcore.train.layout import arrange
from cmcore.train.precision import autocast, choose_matrix_units
from cmcore.train.settings import TrainConfig
from cmcore.train.steps import is_synchronous


class Autocast(nn.Module):
    """A network under the autocast of a training precision; what comes out is float32."""

    def __init__(self, net: nn.Module, train: TrainConfig) -> None:
        super().__init__()
        self.net, self.train_config = net, train

    def forward(self, x: torch.Tensor, *seen: Any) -> torch.Tensor:
        with autocast(self.train_config.precision, x.device):
            return or_plain([self.net], lambda: self.net(x, *seen)).float()


def for_samples(
    denoiser: Denoiser, train: TrainConfig, device: torch.device | str, *, compiled: bool = True
) -> Denoiser:
    """The denoiser, whose network is made ready in place for sampling on the device.

    Args:
        denoiser: in eval mode, on the device.
        train: the settings of the run that trained it: precision, layout, and whether networks are compiled.
        device: where it samples.
        compiled: false for a few samples, which are not worth the minute that compiling takes.
    """
    if is_synchronous(torch.device(device)):
        return denoiser
    choose_matrix_units(train.precision)
    arrange(denoiser.net, replace(train, compile=train.compile and compiled, cuda_graphs=False))
    denoiser.net = Autocast(denoiser.net, train)
    return denoiser
