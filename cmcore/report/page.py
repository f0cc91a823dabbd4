"""The report as one HTML file that needs nothing else: no network, no script, images inside."""

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import jinja2
from markupsafe import Markup

from cmcore.report.cells import Table
from cmcore.report.formats import html_table

TEMPLATE = Path(__file__).with_name("page.html")
MEDIA = {".png": "image/png", ".svg": "image/svg+xml"}
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


@dataclass(frozen=True, kw_only=True)
class Section:
    """A part of the page. `published` marks quoted numbers; tables in `folded` hide behind their titles."""

    title: str
    text: tuple[str, ...] = ()
    tables: tuple[Table, ...] = ()
    folded: tuple[Table, ...] = ()
    figures: tuple[Picture, ...] = ()
    published: bool = False


def page(title: str, intro: Sequence[str], sections: Sequence[Section]) -> str:
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
        inline=inline,
        html_table=lambda table: Markup(html_table(table)),  # html_table escapes its cells
    )


def inline(path: Path) -> str:
    """A PNG or SVG file as a data URI."""
    return f"data:{MEDIA[path.suffix]};base64," + base64.b64encode(path.read_bytes()).decode("ascii")
