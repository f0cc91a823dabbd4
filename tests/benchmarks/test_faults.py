"""A few of the faults of `python -m benchmarks.faults`, which does hundreds."""

import os
from pathlib import Path

import pytest

from benchmarks.faults import flip, survive

pytest.importorskip("dvc")


@pytest.mark.parametrize("hidden", [True, False])
def test_a_bit_is_flipped_and_may_be_hidden(tmp_path: Path, hidden: bool):
    path = tmp_path / "file"
    path.write_bytes(bytes(9))
    before = path.stat().st_mtime_ns
    flip(path, 13, hidden)
    assert path.read_bytes() == bytes([0, 32, *bytes(7)])
    assert (path.stat().st_mtime_ns == before) == hidden


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.xdist_group("pipeline")
@pytest.mark.parametrize(
    ("part", "count"), [("kills", 3), ("flips", 4), ("full", 3), ("hostile", 20), ("mutations", 20)]
)
def test_nothing_is_lost_in_a_few_faults(short_tmp: Path, part: str, count: int):
    if part == "full" and os.geteuid():
        pytest.skip("a disk is mounted by root alone")
    assert survive(part, count, 2, short_tmp / part).total() >= 1
