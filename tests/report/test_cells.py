"""Marks and output formats of tables."""

import csv
import io

import pytest

from cmcore.report.cells import Cell, Column, Table, count, marked, measured
from cmcore.report.formats import csv_cell, csv_text, html_table, latex, markdown, markdown_text


def test_infinite_values_are_refused() -> None:
    with pytest.raises(ValueError, match="finite"):
        measured(float("nan"))


def test_a_count_of_nothing_is_not_known() -> None:
    assert count(0) == Cell("not stated")
    assert count(12) == Cell("12", 12.0)


COLUMNS = (Column("run", "Run"), Column("fd", "fd_x", "low"), Column("recall", "recall", "high"))


def table(*rows: tuple[str, float, float, str]) -> Table:
    cells = tuple((Cell(name), measured(fd, 0.1), measured(recall)) for name, fd, recall, _ in rows)
    return marked(Table("t", "T", COLUMNS, cells, "100% & more", tuple(group for *_, group in rows)))


def test_marks_follow_the_good_end_of_each_column_and_spare_baselines() -> None:
    done = table(
        ("a", 3.0, 0.2, "1"), ("b", 2.0, 0.5, "1"), ("c", 1.0, 0.4, "2"), ("d", 4.0, 0.1, "2"), ("base", 0.1, 0.9, "")
    )
    best = [(row[0].text, column) for row in done.rows for column in (1, 2) if row[column].best]
    group = [(row[0].text, column) for row in done.rows for column in (1, 2) if row[column].best_of_group]
    assert best == [("b", 2), ("c", 1)]
    assert group == [("b", 1), ("b", 2), ("c", 1), ("c", 2)]


def test_equal_values_share_the_mark_and_a_single_row_gets_none() -> None:
    assert [row[1].best for row in table(("a", 1.0, 0.2, "1"), ("b", 1.0, 0.3, "1")).rows] == [True, True]
    assert not any(cell.best or cell.best_of_group for cell in table(("a", 1.0, 0.2, "1")).rows[0])


def test_markdown_marks_and_escapes() -> None:
    done = table(("a|b", 3.0, 0.2, "1"), ("c", 2.0, 0.1, "1"))
    text = markdown(done)
    assert r"| a\|b | 3.00 ± 0.10 | **0.200** |" in text
    assert "| c | **2.00 ± 0.10** | 0.100 |" in text
    assert "| --- | ---: | ---: |" in text
    assert "| Run | fd_x ↓ | recall ↑ |" in text


def test_csv_keeps_every_digit_and_names_spreads() -> None:
    cells = ((Cell('a,"b"'), measured(1 / 3, 1 / 7), Cell("none")),)
    rows = list(csv.DictReader(io.StringIO(csv_text(Table("t", "T", COLUMNS, cells, "")))))
    assert list(rows[0]) == ["run", "fd", "fd_spread", "recall"]
    assert (rows[0]["run"], float(rows[0]["fd"]), float(rows[0]["fd_spread"])) == ('a,"b"', 1 / 3, 1 / 7)


def test_latex_escapes_and_marks() -> None:
    text = latex(table(("a_b", 3.0, 0.2, "1"), ("c", 2.0, 0.1, "1")))
    assert r"a\_b & 3.00 $\pm$ 0.10 & \textbf{0.200} \\" in text
    assert r"\caption{100\% \& more}" in text
    assert text.count("{") == text.count("}")
    assert text.count(r"\begin") == text.count(r"\end") == 2
    text.encode("ascii")


def test_html_escapes() -> None:
    text = html_table(Table("t", "T", COLUMNS, ((Cell("<script>"), measured(1.0), measured(2.0)),), ""))
    assert "<script>" not in text
    assert "&lt;script&gt;" in text


def test_a_row_of_the_wrong_length_is_refused() -> None:
    with pytest.raises(ValueError, match="expected 3 cells in a row, got 1"):
        Table("t", "T", COLUMNS, ((Cell("a"),),), "")


FORMULAS = ["=1+1", "+cmd|' /C calc'!A0", "-2+3", "@SUM(A1)", "\t=1", " =1", "\r\n=1", "=-1", "-", "--1", "+\u0661x"]


@pytest.mark.parametrize("text", FORMULAS)
def test_no_text_is_a_formula(text: str) -> None:
    cells = ((Cell(text), measured(-1 / 3), Cell(text)),)
    (row,) = csv.DictReader(io.StringIO(csv_text(Table("t", "T", COLUMNS, cells, ""))))
    assert row["run"].startswith("'")
    assert row["recall"] == row["run"]
    assert float(row["fd"]) == -1 / 3


@pytest.mark.parametrize("number", [-1, -1.5, "-2", "+3e-4", "-inf", "1", 0.1, "-1e-300"])
def test_negative_numbers_stay_numbers(number: object) -> None:
    assert csv_cell(number) == str(number)


def test_what_is_missing_stays_empty() -> None:
    assert (csv_cell(None), csv_cell("")) == ("", "")


MARKUP = [
    "<img src=x onerror=alert(1)>",
    "a|b",
    "[x](javascript:alert)",
    "![x](http://x)",
    "[x][y]",
    "`code`",
    "**x**",
    "~~x~~",
    "&lt;b&gt; &#60;",
    "a\\|b",
    "one\n\n# two",
    "\x1b[2J\u2028\u202e",
]


@pytest.mark.parametrize("text", MARKUP)
def test_no_text_is_markup(text: str) -> None:
    """Rendered as GitHub does it, by the rules of CommonMark with tables, every cell shows the text itself."""
    renderer = (
        pytest.importorskip("markdown_it").MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"])
    )
    columns = (Column("a", text), *COLUMNS[1:])
    shown = markdown(Table("t", text, columns, ((Cell(text), Cell(text), Cell("z")),), text))
    assert not any(ord(letter) < 32 and letter != "\n" for letter in shown)
    tokens = [child for token in renderer.parse(shown) for child in (token.children or ())]
    assert {token.type for token in tokens} <= {"text", "text_special", "html_entity"}
    inline = ["".join(c.content for c in token.children) for token in renderer.parse(shown) if token.type == "inline"]
    expected = " ".join(text.replace("\x1b", " ").replace("\u2028\u202e", " ").split())
    assert [" ".join(one.split()) for one in inline] == [
        expected,
        expected,
        "fd_x ↓",
        "recall ↑",
        expected,
        expected,
        "z",
        expected,
    ]


def test_ordinary_text_stays_as_it_is_in_markdown() -> None:
    for text in ("reflow_distilled", "NVIDIA H100 80GB, 2 threads", "1.2\u202fh", "R&D, [0, 1]: 95 %", "± – ↓ (2^32)"):
        assert markdown_text(text) == text


def test_controls_of_terminals_are_in_no_format() -> None:
    cells = ((Cell("a\x1b[2Jb\n\nc\u202ed"), measured(1.0), measured(2.0)),)
    for form in (markdown, csv_text, latex, html_table):
        assert "\x1b" not in form(Table("t", "T", COLUMNS, cells, "c\x1b"))
        assert "\u202e" not in form(Table("t", "T", COLUMNS, cells, "c\x1b"))
