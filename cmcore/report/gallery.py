"""A figure of edited images: for every task the truth, the known part and what each model made of it."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from cmcore.report.plots import WIDTH, canvas, style

Images = NDArray[np.uint8]


@dataclass(frozen=True, kw_only=True)
class Edited:
    """The results of one model: images (N, C, H, W), and how far they are from the truth, in pixels of [-1, 1]."""

    model: str
    nfe: int
    images: Images
    error: float  # mean over the images of the root mean square over pixels
    standard_error: float
    known_error: float  # the largest difference of a known coefficient

    @property
    def label(self) -> str:
        """What the row is called."""
        return f"{self.model}, NFE {self.nfe}\nerror {self.error:.3f} ± {self.standard_error:.3f}"


@dataclass(frozen=True, kw_only=True)
class Edit:
    """A task, with its known part as images."""

    task: str
    known: Images
    results: Sequence[Edited]


def gallery(truth: Images, edits: Sequence[Edit]) -> Figure:
    """Columns are images; rows are the truth, then for every task the known part and the results."""
    rows = [("truth", truth)]
    for edit in edits:
        rows += [(f"{edit.task}:\nknown", edit.known), *((one.label, one.images) for one in edit.results)]
    bands = [canvas(images, len(truth)) for _, images in rows]
    picture, left = np.concatenate(bands), 1.5
    with style():
        tall = (WIDTH - left) * picture.shape[0] / picture.shape[1]
        figure = Figure(figsize=(WIDTH, tall + 0.1))
        axes = figure.add_axes((left / WIDTH, 0.05 / (tall + 0.1), 1 - left / WIDTH - 0.005, tall / (tall + 0.1)))
        axes.imshow(picture, interpolation="nearest", aspect="auto")
        axes.set_axis_off()
        for index, (label, _) in enumerate(rows):
            middle = (index + 0.47) * bands[0].shape[0]
            axes.annotate(label, (0, middle), (-6, 0), textcoords="offset points", ha="right", va="center", fontsize=8)
    return figure
