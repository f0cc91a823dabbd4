"""Exponential moving averages of the weights; several profiles may follow one run."""

from collections.abc import Iterable
from functools import cache

import torch
from torch import Tensor

from cmcore.train.settings import EmaConfig


@cache  # every step asks for it
def power_exponent(std: float) -> float:
    """gamma of the power-function profile with relative width sigma_rel = std (arXiv 2312.02696, Eq. 126).

    sigma_rel^2 = (gamma + 1) / ((gamma + 2)^2 (gamma + 3)), solved for gamma by bisection.
    """
    low, high = 0.0, 1e6
    for _ in range(200):
        gamma = (low + high) / 2
        low, high = (gamma, high) if (gamma + 1) / ((gamma + 2) ** 2 * (gamma + 3)) > std**2 else (low, gamma)
    return (low + high) / 2


def decay(profile: EmaConfig, images: int, batch: int) -> float:
    """The decay beta of the update that ends at `images` images seen, after a step of `batch` images.

    EDM's ramp counts the images before the step, EDM2's power function those after it; both as in their code.
    """
    if profile.power_std:
        return max(0.0, 1 - batch / images) ** (power_exponent(profile.power_std) + 1)
    half_life = min(profile.half_life, profile.ramp * (images - batch)) if profile.ramp else profile.half_life
    return 0.5 ** (batch / max(half_life, 1e-8))


@torch.no_grad()
def update(average: Iterable[Tensor], current: Iterable[Tensor], beta: float, go: Tensor | None = None) -> None:
    """average <- beta average + (1 - beta) current, in place, in the manner of one fused operation.

    With `go`, a bool () on the device, only where that holds.
    """
    averages, now = list(average), [tensor.detach() for tensor in current]
    if go is None:
        torch._foreach_lerp_(averages, now, 1 - beta)
        return
    change = torch._foreach_sub(now, averages)
    torch._foreach_mul_(change, (1 - beta) * go)
    torch._foreach_add_(averages, change)
