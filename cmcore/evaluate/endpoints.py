"""How far one-step samples are from the teacher's own probability-flow end points."""

import math

from torch import Tensor

from cmcore.evaluate.records import Measured
from cmcore.tensors import mean_per_sample


def endpoint_rmse(x: Tensor, y: Tensor) -> Measured:
    """Root mean square difference of images (B, C, H, W) made from the same noise, with its standard error over images.

    The error of the root follows from that of the mean square by the delta method.
    """
    if x.shape != y.shape or len(x) < 2:
        raise ValueError(f"end points: expected two equal sets of at least 2 images, got {x.shape} and {y.shape}")
    square = mean_per_sample((x.double() - y.double()).square())
    rmse = math.sqrt(float(square.mean()))
    error = float(square.std()) / math.sqrt(len(square))
    return Measured(rmse, error / (2 * rmse) if rmse > 0 else 0.0, "images")
