"""A few of the faults of `python -m benchmarks.faults`, which does hundreds."""

import os
from collections import Counter
from pathlib import Path

import pytest

from benchmarks.faults import KINDS, flip, flips_at_once, rows_of, survive, write_page

pytest.importorskip("dvc")


@pytest.mark.parametrize("hidden", [True, False])
def test_a_bit_is_flipped_and_may_be_hidden(tmp_path: Path, hidden: bool):
    path = tmp_path / "file"
    path.write_bytes(bytes(9))
    before = path.stat().st_mtime_ns
    flip(path, 13, hidden)
    assert path.read_bytes() == bytes([0, 32, *bytes(7)])
    assert (path.stat().st_mtime_ns == before) == hidden


def test_bits_are_flipped_in_files_of_all_kinds_and_read_together():
    groups = flips_at_once(50)
    flipped = Counter(kind for kinds in groups for kind in kinds)
    assert flipped.total() == 50
    assert flipped.keys() == KINDS.keys()
    assert all(len({KINDS[kind] for kind in kinds}) == 1 for kinds in groups)


def test_the_page_keeps_the_last_row_of_every_part(tmp_path: Path):
    page = tmp_path / "faults.md"
    for part, row in (("full", "| full | 1 |"), ("kills", "| kills | 2 |"), ("full", "| full | 3 |")):
        write_page(page, part, row)
    assert rows_of(page) == {"kills": "| kills | 2 |", "full": "| full | 3 |"}
    assert page.read_text().index("kills | 2") < page.read_text().index("full | 3")
    assert "full | 1" not in page.read_text()


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.xdist_group("pipeline")
@pytest.mark.parametrize(
    ("part", "count"), [("kills", 3), ("flips", 4), ("full", 3), ("signals", 2), ("hostile", 20), ("mutations", 20)]
)
def test_nothing_is_lost_in_a_few_faults(short_tmp: Path, part: str, count: int):
    if part == "full" and os.geteuid():
        pytest.skip("a disk is mounted by root alone")
    faults, which = survive(part, count, 2, short_tmp / part)
    assert faults >= 1
    assert which.isprintable()
