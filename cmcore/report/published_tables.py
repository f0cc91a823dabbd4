"""The published numbers as tables: a compact one per data set for readers, one line per number for programs."""

from collections.abc import Sequence

from cmcore.report.cells import DASH, Cell, Column, Table, count
from cmcore.report.published import DATASETS, Number, Row

CAPTION = (
    "Published numbers, quoted and not measured here. Images seen are those of the run itself, without those of the "
    "model it starts from. Numbers of an adversarial method compare with those of other adversarial methods only. "
    "'Secondary' means read in another text than the source; 'from memory, unverified' means recalled and still to be "
    "checked."
)
COMPACT = (
    Column("label", "Method"),
    Column("fid_1", "1 NFE", "low"),
    Column("fid_2", "2 NFE", "low"),
    Column("fid_more", "Other NFE", "low"),
    Column("init", "Starts from"),
    Column("adversarial", "Adversarial"),
    Column("images", "Images seen"),
    Column("source", "Source"),
    Column("known", "How we know it"),
    Column("note", "Note"),
)


def compact(numbers: Sequence[Number]) -> tuple[Table, ...]:
    """One table per data set, one row per model, FID columns by number of function evaluations."""
    tables = []
    for dataset, name in DATASETS.items():
        rows: dict[Row, list[Number]] = {}
        for number in numbers:
            if number.row.dataset == dataset:
                rows.setdefault(number.row, []).append(number)
        if rows:
            lines = tuple(_line(row, found) for row, found in rows.items())
            heading = f"Published FID, {name}"
            tables.append(Table(f"published-{dataset}", heading, COMPACT, lines, CAPTION, published=True))
    return tuple(tables)


def _line(row: Row, numbers: Sequence[Number]) -> tuple[Cell, ...]:
    steps = {number.nfe: number for number in numbers}
    more = ", ".join(f"{n.text} ({n.nfe or 'NFE not stated'})" for nfe, n in steps.items() if nfe not in (1, 2))
    label = f"{row.label} ({row.metric})" if row.metric != "FID" else row.label
    label += f", by {row.by}" if row.by else ""
    label += ", class-conditional" if row.conditional and row.dataset == "cifar10" else ""
    trained = (Cell(row.init), Cell("yes" if row.adversarial else "no"), count(row.images))
    values = (Cell(steps[nfe].text, steps[nfe].value) if nfe in steps else Cell(DASH) for nfe in (1, 2))
    return (Cell(label), *values, Cell(more or DASH), *trained, Cell(numbers[0].cite), Cell(row.known), Cell(row.note))


def complete(numbers: Sequence[Number]) -> Table:
    """Every number with everything that is known about it."""
    keys = ("dataset", "method", "label", "metric", "nfe", "value", "init", "images", "conditional", "adversarial")
    rest = ("by", "source_title", "arxiv", "repository", "table", "known", "read_in", "note")
    rows = tuple(
        (
            *(Cell(text) for text in (n.row.dataset, n.row.method, n.row.label, n.row.metric)),
            Cell(str(n.nfe or "")),
            Cell(n.text),
            Cell(n.row.init),
            Cell(str(n.row.images or "")),
            *(Cell("yes" if flag else "no") for flag in (n.row.conditional, n.row.adversarial)),
            *(Cell(text) for text in (n.row.by, n.source.title, n.source.arxiv, n.source.repository, n.row.table)),
            *(Cell(text) for text in (n.row.known, n.row.read_in, n.row.note)),
        )
        for n in numbers
    )
    columns = tuple(Column(key, key) for key in (*keys, *rest))
    return Table("published", "Published numbers", columns, rows, CAPTION, published=True)
