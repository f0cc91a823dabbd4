"""The nearest training images of samples, in pixels, and the share of samples that are copies."""

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from cmcore.evaluate.images import ImageArray
from cmcore.evaluate.records import Measured

_RATIO = 3  # a sample three times nearer to one training image than to any other counts as its copy
_NUMBERS = 2**22  # of training images in memory at a time


class Nearest(NamedTuple):
    """Of some samples: squared distances to the two nearest training images, ascending, and the row of the nearest."""

    squared: Tensor  # (B, 2) float64, whole numbers: sums of squared differences of values 0 to 255
    row: Tensor  # (B,) int64


@dataclass(frozen=True)
class Training:
    """The training images that samples are compared with."""

    images: ImageArray
    digest: str

    def nearest(self, samples: Tensor, device: torch.device | str = "cpu") -> Nearest:
        """The nearest images of uint8 samples (B, C, H, W), among two or more. Distances are exact on any machine."""
        if len(self.images) < 2 or samples.shape[1:] != self.images.shape[1:]:
            raise ValueError(
                f"samples: expected {self.images.shape[1:]} and two training images or more, got "
                f"{tuple(samples.shape[1:])} and {len(self.images)}"
            )
        x = samples.to(device).flatten(1).double()
        square = x.square().sum(1, keepdim=True)
        best, place = x.new_empty((len(x), 0)), torch.empty((len(x), 0), dtype=torch.int64, device=x.device)
        step = max(2, _NUMBERS // x.shape[1])
        for start in range(0, len(self.images), step):
            y = torch.from_numpy(np.array(self.images[start : start + step])).to(device).flatten(1).double()
            # Whole numbers below 2^53 throughout, so that the order of sums does not matter.
            squared = square + y.square().sum(1) - 2 * x @ y.T
            rows = torch.arange(start, start + len(y), device=x.device).expand(len(x), -1)
            best, place = torch.cat([best, squared], 1), torch.cat([place, rows], 1)
            best, order = best.topk(2, dim=1, largest=False)
            place = place.gather(1, order)
        return Nearest(best.cpu(), place[:, 0].cpu())


def memorised(squared: Tensor) -> Measured:
    """Share of samples whose nearest training image is at less than a third of the distance of the second nearest.

    This is the criterion of arXiv 2310.02664; an exact copy counts also where the image stands twice in the
    training set.

    Args:
        squared: of `Nearest`, (B, 2).
    """
    copies = (_RATIO**2 * squared[:, 0] < squared[:, 1]) | (squared[:, 0] == 0)
    p = float(copies.double().mean())
    return Measured(p, math.sqrt(p * (1 - p) / len(copies)), "images")


def nearest_distance(squared: Tensor, pixels: int) -> Measured:
    """Mean distance to the nearest training image: root mean square over the pixels, with values in [-1, 1].

    Args:
        squared: of `Nearest`, (B, 2).
        pixels: numbers in an image.
    """
    distances = (squared[:, 0] / pixels).sqrt() / 127.5
    return Measured(float(distances.mean()), float(distances.std(correction=0)) / math.sqrt(len(distances)), "images")
