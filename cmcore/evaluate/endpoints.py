"""Distance of one-step samples from the end points of the teacher's probability-flow ODE."""

import math

from torch import Tensor

from cmcore.evaluate.records import Measured
from cmcore.tensors import mean_per_sample


def squared_errors(x: Tensor, y: Tensor) -> Tensor:
    """Mean square difference of paired images (B, C, H, W) from the same noise: (B,) float64."""
    if x.shape != y.shape:
        raise ValueError(f"end points: expected two equal sets of images, got {tuple(x.shape)} and {tuple(y.shape)}")
    return mean_per_sample((x.double() - y.double()).square())


def endpoint_rmse(errors: Tensor) -> Measured:
    """Root of the mean of `squared_errors` (B,), with its standard error over images.

    The error of the root follows from that of the mean square by the delta method.
    """
    if len(errors) < 2:
        raise ValueError(f"end points: expected at least 2 images, got {len(errors)}")
    rmse = math.sqrt(float(errors.mean()))
    error = float(errors.std()) / math.sqrt(len(errors))
    return Measured(rmse, error / (2 * rmse) if rmse > 0 else 0.0, "images")
