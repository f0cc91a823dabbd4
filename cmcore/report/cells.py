"""A table as data: cells, columns and marks, before any output format."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from cmcore import numbers
from cmcore.evaluate.records import MetricRecord

# By column, the rows that compare and the best of them, and whether they are of one group: the rows tied with the best.
Tied = Callable[[str, Sequence[int], int, bool], set[int]]
Better = Literal["low", "high", ""]
DASH = "\u2013"


@dataclass(frozen=True)
class Cell:
    """One entry. A cell with a `value` is a number; `text` is what is shown in either case."""

    text: str = ""
    value: float | None = None
    spread: float | None = None
    best: bool = False  # the best of its column
    best_of_group: bool = False  # the best of its column among the rows of its group
    source: str = ""  # of a measured value: "run|NFE|sampler|metric", by which the page shows where it comes from


@dataclass(frozen=True)
class Column:
    """`key` names the column in files, `head` for readers; `better` says which end is good.

    A `minor` column stands in CSV, and on the page where a reader asks for it.
    """

    key: str
    head: str
    better: Better = ""
    minor: bool = False


@dataclass(frozen=True)
class Table:
    """Rows of cells under columns. `groups` names each row's group for the marks; "" keeps a row out of them."""

    name: str
    title: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[Cell, ...], ...]
    caption: str
    groups: tuple[str, ...] = ()
    published: bool = False

    def __post_init__(self) -> None:
        for row in self.rows:
            if len(row) != len(self.columns):
                raise ValueError(f"table {self.name}: expected {len(self.columns)} cells in a row, got {len(row)}")


def measured(value: float, spread: float = 0.0) -> Cell:
    """A cell that shows a measured value with its spread, in at most three significant digits."""
    if not math.isfinite(value):
        raise ValueError(f"expected a finite number in a table, got {value}")
    shown, over = numbers.rounded(value, spread, most=3)
    return Cell(f"{shown} ± {over}" if over else shown, value, spread or None)


def of_record(record: MetricRecord | None) -> Cell:
    """A cell of a record, or a dash."""
    if record is None:
        return Cell(DASH)
    p = record.provenance
    return replace(measured(record.value, record.spread), source=f"{p.run}|{p.nfe}|{p.sampler}|{record.key}")


def major(table: Table) -> Table:
    """The table without its minor columns."""
    kept = [index for index, column in enumerate(table.columns) if not column.minor]
    rows = tuple(tuple(row[index] for index in kept) for row in table.rows)
    return replace(table, columns=tuple(table.columns[index] for index in kept), rows=rows)


def count(number: int) -> Cell:
    """A cell of a whole number; 0 means that it is not known."""
    return Cell(numbers.count(number), float(number)) if number else Cell("not stated")


def duration(seconds: float) -> Cell:
    """A cell of a time."""
    return Cell(numbers.duration(seconds, numbers.GAP), seconds)


def marked(table: Table, tied: Tied | None = None) -> Table:
    """The table with the best values of each column marked: over all rows that have a group, and within each group.

    Args:
        table: with groups.
        tied: asked for the rows that share the mark of the best one; by default those with the same value.
    """
    rows = [list(row) for row in table.rows]
    for index, column in enumerate(table.columns):
        if not column.better:
            continue
        inside = [row for row, group in enumerate(table.groups) if group and rows[row][index].value is not None]
        _mark(rows, index, inside, column, "best", tied)
        for group in sorted({table.groups[row] for row in inside}):
            ours = [row for row in inside if table.groups[row] == group]
            _mark(rows, index, ours, column, "best_of_group", tied)
    return replace(table, rows=tuple(tuple(row) for row in rows))


def _mark(
    rows: list[list[Cell]], index: int, inside: Sequence[int], column: Column, mark: str, tied: Tied | None
) -> None:
    if len(inside) < 2:
        return
    values = [float(rows[row][index].value or 0.0) for row in inside]
    best = min(values) if column.better == "low" else max(values)
    found = {row for row, value in zip(inside, values, strict=True) if value == best}
    if tied is not None:
        found |= tied(column.key, inside, min(found), mark == "best_of_group")
    for row in found:
        rows[row][index] = replace(rows[row][index], **{mark: True})
