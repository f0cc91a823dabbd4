"""Samples as thin pictures for the page: all images of a row side by side, in their own size."""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from cmcore.report.captions import run_title
from cmcore.report.readers import Images, RunReport

COUNTS = (64, 32, 16, 8)  # images of a strip
SHOWN = 8  # of them at first
MARKUP = 450  # bytes of a strip on the page beside its picture, at most, where titles are not much longer than ours


@dataclass(frozen=True, kw_only=True)
class Strip:
    """A row of samples. `source` is a data URI of `count` square images, of which the page shows `shown` at first."""

    run: str
    title: str
    nfe: int  # 0 for the teacher's end points
    label: str
    source: str
    count: int
    shown: int = SHOWN

    @property
    def alt(self) -> str:
        """What a reader who cannot see it should know."""
        return f"{self.count} samples, {self.title}, {self.label}"


def strips(runs: Sequence[RunReport], room: int) -> tuple[Strip, ...]:
    """A strip for every row of samples: as many images as `room` bytes of a page hold, as PNG if it can be.

    Where not even the fewest images fit, those.
    """
    rows = [
        (run.facts.run, run_title(run), int(label.split()[0]), label, images)
        for run in runs
        for label, images in (run.samples or {}).items()
    ]
    endpoints = next((run.endpoints for run in runs if run.endpoints is not None), None)
    if endpoints is not None:
        rows.insert(0, ("", "teacher's ODE", 0, "end points", endpoints))
    found: list[tuple[bytes, int]] = []
    for count, kind in (*((count, "png") for count in COUNTS), (COUNTS[-1], "jpeg")):
        found = [(encoded(images[:count], kind), min(count, len(images))) for *_, images in rows]
        if sum(len(uri(data)) + MARKUP for data, _ in found) <= room:
            break
    return tuple(
        Strip(run=run, title=title, nfe=nfe, label=label, source=uri(data), count=count, shown=min(SHOWN, count))
        for (run, title, nfe, label, _), (data, count) in zip(rows, found, strict=True)
    )


def encoded(images: Images, kind: str) -> bytes:
    """Images (N, C, H, W) side by side, as a PNG or JPEG file."""
    N, C, H, W = images.shape
    side = images.transpose(2, 0, 3, 1).reshape(H, N * W, C)
    picture = Image.fromarray(np.ascontiguousarray(side[..., 0] if C == 1 else side))
    out = io.BytesIO()
    options = {"optimize": True} if kind == "png" else {"quality": 85, "subsampling": 0}
    picture.save(out, kind, **options)
    return out.getvalue()


def uri(data: bytes) -> str:
    """A PNG or JPEG file as a data URI."""
    kind = "png" if data.startswith(b"\x89PNG") else "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(data).decode('ascii')}"
