"""history.jsonl: what a run wrote of a future that was lost is written again, once."""

import json
import math
from pathlib import Path

import pytest

from cmcore.tracking.jsonl import line, read
from cmcore.train.session import History


def write(path: Path, images: list[int], resume_at: int = 0) -> None:
    history = History(path, resume_at)
    for n in images:
        history.append({"images": n, "loss": 1 / n})


def test_a_resumed_run_writes_the_bytes_of_an_uninterrupted_one(tmp_path: Path):
    write(tmp_path / "whole.jsonl", [10, 20, 30, 40])
    write(tmp_path / "parts.jsonl", [10, 20, 30])
    write(tmp_path / "parts.jsonl", [30, 40], resume_at=20)
    assert (tmp_path / "parts.jsonl").read_bytes() == (tmp_path / "whole.jsonl").read_bytes()


def test_a_new_run_starts_a_new_history(tmp_path: Path):
    write(tmp_path / "h.jsonl", [10, 20])
    write(tmp_path / "h.jsonl", [5])
    assert [row["images"] for row in read(tmp_path / "h.jsonl")] == [5]


def test_a_line_that_a_crash_cut_short_is_dropped(tmp_path: Path):
    write(tmp_path / "h.jsonl", [10, 20])
    with (tmp_path / "h.jsonl").open("a") as file:
        file.write('{"images": 30, "lo')
    write(tmp_path / "h.jsonl", [30], resume_at=20)
    assert [row["images"] for row in read(tmp_path / "h.jsonl")] == [10, 20, 30]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_lines_are_strict_json(value: float):
    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    assert json.loads(line({"images": 1, "loss": value}), parse_constant=refuse) == {"images": 1, "loss": None}
