"""The report as one HTML file that needs nothing else: no network, its script and images inside.

Everything that is measured stands in tables without the script; with it tables sort, charts are drawn and numbers
say where they come from.
"""

import base64
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup
from PIL import Image

from cmcore.report.cells import Table
from cmcore.report.formats import html_table
from cmcore.report.sounds import Sound
from cmcore.report.strips import Strip, uri

TEMPLATE = Path(__file__).with_name("page.html")
TONES = 64  # of an inline picture: charts have few colours
FOOTER = (
    "Made from the records in this folder by the tabulate stage; its tables stand beside it as Markdown, CSV and LaTeX."
)


@dataclass(frozen=True, kw_only=True)
class Picture:
    """A figure of the page: a PNG or SVG file, its caption, and what a reader who cannot see it should know."""

    path: Path
    caption: str
    alt: str
    wide: bool = False

    @cached_property
    def source(self) -> str:
        """The figure as a data URI."""
        return inline(self.path)


@dataclass(frozen=True, kw_only=True)
class Section:
    """A part of the page. `published` marks quoted numbers; tables in `folded` hide behind their titles.

    `charts` asks for the interactive charts, and `strips` for samples that enlarge. `sounds` are played.
    """

    title: str
    text: tuple[str, ...] = ()
    tables: tuple[Table, ...] = ()
    folded: tuple[Table, ...] = ()
    figures: tuple[Picture, ...] = ()
    strips: tuple[Strip, ...] = ()
    sounds: tuple[Sound, ...] = ()
    charts: bool = False
    published: bool = False


def page(title: str, intro: Sequence[str], sections: Sequence[Section], data: Mapping[str, Any] | None = None) -> str:
    """The page as text. Everything in it is escaped; equal input gives equal text."""
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    template = environment.from_string(TEMPLATE.read_text(encoding="utf-8"))
    return template.render(
        title=title,
        intro=intro,
        sections=sections,
        footer=FOOTER,
        html_table=lambda table: Markup(html_table(table)),  # html_table escapes its cells
        data=Markup(json.dumps(data or {}, separators=(",", ":"), ensure_ascii=True).replace("<", "\\u003c")),
    )


def inline(path: Path) -> str:
    """A figure as a data URI: its SVG file, or its PNG file in few colours if that is smaller."""
    svg, png = path.with_suffix(".svg"), path.with_suffix(".png")
    found = []
    if svg.is_file():
        found.append("data:image/svg+xml;base64," + base64.b64encode(svg.read_bytes()).decode("ascii"))
    if png.is_file():
        out = io.BytesIO()
        with Image.open(png) as picture:
            picture.convert("RGB").quantize(TONES, Image.Quantize.MEDIANCUT).save(out, "png", optimize=True)
        found.append(uri(out.getvalue()))
    return min(found, key=len)
