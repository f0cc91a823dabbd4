"""Edited images: their errors against the truth as records and a table, and figures of what each model made."""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

from matplotlib.figure import Figure

from cmcore.report.bands import bands
from cmcore.report.readers import Images


@dataclass(frozen=True, kw_only=True)
class Restored:
    """How far the results of one model are from the truth, in pixels of [-1, 1]."""

    model: str
    steps: int  # evaluations, at most
    nfe: int
    error: float  # mean over the images of the root mean square over pixels
    standard_error: float
    known_error: float  # the largest difference of a pixel of the known part

    @property
    def label(self) -> str:
        """What the row is called."""
        return f"{self.model}, NFE {self.nfe}\nerror {self.error:.3f} ± {self.standard_error:.3f}"


@dataclass(frozen=True, kw_only=True)
class Edited(Restored):
    """The errors, beside the images (N, C, H, W) themselves."""

    images: Images

    def called(self, name: str) -> "Edited":
        """The same under another name of the model."""
        return replace(self, model=name)

    @property
    def numbers(self) -> dict[str, Any]:
        """The errors alone, as JSON data."""
        return {field.name: getattr(self, field.name) for field in fields(Restored)}


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
    figure = bands([(label, (images,)) for label, images in rows], len(truth), left=1.5)
    if figure is None:
        raise ValueError("expected at least one image, got none")
    return figure
