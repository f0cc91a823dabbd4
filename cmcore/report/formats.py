"""A table as Markdown, CSV, LaTeX and HTML. Equal tables give equal bytes.

Names of devices, texts of records and values of searches come from files and machines of others. So none is more than
text in any of the formats: no markup, no formula, no control character.
"""

import csv
import html
import io
import re

from cmcore.numbers import GAP
from cmcore.report.cells import DASH, Cell, Column, Table, major

ARROW = {"low": " ↓", "high": " ↑", "": ""}
TEX = {
    "\\": r"\textbackslash{}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "±": r"$\pm$",
    "↓": r"$\downarrow$",
    "↑": r"$\uparrow$",
    DASH: "--",
    GAP: r"\,",
}
CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]+")  # also those that turn the direction of text
MARKUP = re.compile(r"[\\`*|<>~]|&(?=#?\w+;)|(?<=\])[(\[]")  # of Markdown, and of HTML in it; the last are links
ENTITIES = {"<": "&lt;", ">": "&gt;", "&": "&amp;"}
FORMULA = re.compile(r"\s*[=+\-@]")  # at the head of a cell, for spreadsheets


def plain(text: object) -> str:
    """The text on one line, without control characters."""
    return CONTROL.sub(" ", str(text))


def markdown_text(text: object) -> str:
    """The text in Markdown, none of which is markup."""
    return MARKUP.sub(lambda found: ENTITIES.get(found[0], f"\\{found[0]}"), plain(text))


def csv_cell(value: object) -> str:
    """A number as it is. A text that spreadsheets would compute, not being a number, gets an apostrophe before it."""
    text = "" if value is None else plain(value)
    if not FORMULA.match(text):
        return text
    try:
        float(text)
    except ValueError:
        return f"'{text}"
    return text


def head(column: Column) -> str:
    """The head of a column, with an arrow to the good end."""
    return column.head + ARROW[column.better]


def markdown(table: Table) -> str:
    """GitHub's Markdown: the title, the table, the caption."""
    table = major(table)
    lines = [
        [markdown_text(head(column)) for column in table.columns],
        [_rule(table, i) for i in range(len(table.columns))],
    ]
    lines += [[_markdown_cell(cell) for cell in row] for row in table.rows]
    body = "\n".join("| " + " | ".join(line) + " |" for line in lines)
    parts = (f"### {markdown_text(table.title)}", body, markdown_text(table.caption))
    return "\n\n".join(part for part in parts if part) + "\n"


def _rule(table: Table, index: int) -> str:
    return "---:" if numeric(table, index) else "---"


def numeric(table: Table, index: int) -> bool:
    """Whether a column holds numbers."""
    return any(row[index].value is not None for row in table.rows)


def _markdown_cell(cell: Cell) -> str:
    text = markdown_text(cell.text)
    if cell.best:
        return f"**{text}**"
    return f"*{text}*" if cell.best_of_group else text


def csv_text(table: Table) -> str:
    """One line per row with every digit; a column with spreads is followed by `<key>_spread`."""
    spreads = [any(row[index].spread is not None for row in table.rows) for index in range(len(table.columns))]
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    names = [
        [column.key, f"{column.key}_spread"][: 1 + spread]
        for column, spread in zip(table.columns, spreads, strict=True)
    ]
    writer.writerow([csv_cell(name) for pair in names for name in pair])
    for row in table.rows:
        pairs = [[_raw(cell), _number(cell.spread)][: 1 + spread] for cell, spread in zip(row, spreads, strict=True)]
        writer.writerow([item for pair in pairs for item in pair])
    return out.getvalue()


def _raw(cell: Cell) -> str:
    return _number(cell.value) or csv_cell(cell.text)


def _number(value: float | None) -> str:
    if value is None:
        return ""
    return str(int(value)) if float(value).is_integer() and abs(value) < 1e15 else repr(float(value))


def latex(table: Table) -> str:
    """A booktabs table; a longtable where one page would not hold it."""
    table = major(table)
    long = len(table.rows) > 40
    spec = "".join("r" if numeric(table, index) else "l" for index in range(len(table.columns)))
    names = " & ".join(_tex(head(column)) for column in table.columns) + r" \\"
    rows = "\n".join(" & ".join(map(_tex_cell, row)) + r" \\" for row in table.rows)
    caption = rf"\caption{{{_tex(table.caption)}}}"
    label = rf"\label{{tab:{table.name}}}"
    ruled = f"\\toprule\n{names}\n\\midrule\n"
    if long:
        start = f"\\begin{{longtable}}{{{spec}}}\n{caption}{label}\\\\\n{ruled}\\endhead\n"
        return f"{start}{rows}\n\\bottomrule\n\\end{{longtable}}\n"
    inner = f"\\begin{{tabular}}{{{spec}}}\n{ruled}{rows}\n\\bottomrule\n\\end{{tabular}}"
    return f"\\begin{{table}}\n\\centering\n{caption}\n{label}\n{inner}\n\\end{{table}}\n"


def _tex(text: str) -> str:
    return "".join(TEX.get(letter, letter) for letter in plain(text))


def _tex_cell(cell: Cell) -> str:
    text = _tex(cell.text)
    if cell.best:
        return rf"\textbf{{{text}}}"
    return rf"\emph{{{text}}}" if cell.best_of_group else text


def html_table(table: Table) -> str:
    """The bare table element; long names may break after an underscore, and numbers stay on one line.

    For the script of the page, a cell carries its number (`data-v`) and the record it comes from (`data-source`).
    """
    heads = "".join(
        f'<th scope="col"{_class(table, index)}>{_breakable(head(column))}</th>'
        for index, column in enumerate(table.columns)
    )
    rows = "".join(
        f'<tr data-run="{html.escape(plain(row[0].text))}">'
        + "".join(_html_cell(table, index, cell) for index, cell in enumerate(row))
        + "</tr>\n"
        for row in table.rows
    )
    name = html.escape(table.name)
    return f'<table id="table-{name}">\n<thead><tr>{heads}</tr></thead>\n<tbody>\n{rows}</tbody>\n</table>'


def _class(table: Table, index: int, kind: str = "") -> str:
    names = (kind or ("n" if numeric(table, index) else ""), "minor" if table.columns[index].minor else "")
    shown = " ".join(name for name in names if name)
    return f' class="{shown}"' if shown else ""


def _html_cell(table: Table, index: int, cell: Cell) -> str:
    text = _breakable(cell.text)
    if cell.best:
        text = f"<strong>{text}</strong>"
    elif cell.best_of_group:
        text = f"<em>{text}</em>"
    name = "th scope=row" if index == 0 else "td"
    kind = _class(table, index, "w" if len(cell.text) > 24 and cell.value is None else "")
    data = f' data-v="{cell.value:.6g}"' if cell.value is not None else ""
    data += f' data-source="{html.escape(plain(cell.source))}"' if cell.source else ""
    return f"<{name}{kind}{data}>{text}</{name.split()[0]}>"


def _breakable(text: str) -> str:
    return html.escape(plain(text)).replace("_", "_<wbr>")
