"""The precision policy, all of it. Parameters, optimiser, averages and losses are float32, levels and times float64.

`train.precision` chooses how the matrix products and convolutions of the networks are computed:

- fp32: as they are written;
- tf32: with the short mantissa of the tensor cores, where the device has them;
- bf16, fp16: in half precision, by autocast, where norms still accumulate in float32. The range of fp16 is small, so
  its loss is scaled: see `LossScale`.

A derivative by time (sCT, sCD), the pass that it is taken of and its direction are under `train.jvp_precision`, which
is fp32 or tf32 under any of them, or

- bf16: the pass is under `train.precision`, and the tangent beside it has its convolutions, linear layers and attention
  in bf16; its embeddings, norms and activations stay in float32. Against fp32 the tangent has an error of 4 %.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from cmcore.train.settings import JvpPrecision, PrecisionName

HALF = {"bf16": torch.bfloat16, "fp16": torch.float16}
INITIAL, GROWTH, BACKOFF, INTERVAL = 2.0**16, 2.0, 0.5, 2000  # PyTorch's values
LEAST = 1.0


def choose_matrix_units(precision: PrecisionName, jvp_precision: JvpPrecision = "fp32") -> None:
    """Allow TF32 where it was asked for, and nowhere else, in this process."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = "tf32" in (precision, jvp_precision)


def autocast(precision: PrecisionName, device: torch.device) -> torch.autocast:
    """The context of a forward pass and its loss."""
    return torch.autocast(device.type, HALF.get(precision, torch.bfloat16), enabled=precision in HALF)


class LossScale:
    """Dynamic loss scaling (arXiv 1710.03740, sec. 3.2). Its state is on the device, so the host never waits.

    The scale halves at an overflow, whose step is skipped, and doubles after `INTERVAL` steps without one.
    """

    def __init__(self, device: torch.device | str = "cpu") -> None:
        self.scale = torch.tensor(INITIAL, device=device)
        self.streak = torch.zeros((), device=device)  # steps since the last change
        self.skipped = torch.zeros((), device=device)  # steps that were not taken, in all

    @property
    def tensors(self) -> dict[str, Tensor]:
        """The state for a checkpoint: the tensors themselves, not copies."""
        return {"scale": self.scale, "streak": self.streak, "skipped": self.skipped}

    def unscale(self, tensors: Sequence[Tensor]) -> None:
        """Divide by the scale in place. The scale is a power of two, so this is exact."""
        torch._foreach_mul_(list(tensors), 1 / self.scale)

    def update(self, finite: Tensor) -> Tensor:
        """Take note of whether a step's gradients were finite, a bool ().

        Returns:
            Whether they were not at the least scale, a bool (): then it is not the scale's fault.
        """
        hopeless = ~finite & (self.scale <= LEAST)
        streak = torch.where(finite, self.streak + 1, 0.0)
        grown = streak >= INTERVAL
        factor = torch.where(grown, GROWTH, torch.where(finite, 1.0, BACKOFF))
        self.scale.mul_(factor).clamp_(min=LEAST)
        self.streak.copy_(torch.where(grown, 0.0, streak))
        self.skipped.add_(~finite)
        return hopeless
