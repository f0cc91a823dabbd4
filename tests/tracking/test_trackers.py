import json
import math
import pickle
from pathlib import Path

import pytest

from cmcore.tracking.base import Null, Said, Sender, Tee, Tracker
from cmcore.tracking.jsonl import Jsonl, read


class Recorder:
    def __init__(self, log: list, name: str = "") -> None:
        self.log, self.name = log, name

    def params(self, values):
        self.log.append((self.name, "params", dict(values)))

    def metrics(self, values, images):
        self.log.append((self.name, "metrics", dict(values), images))

    def artifact(self, path, folder=""):
        self.log.append((self.name, "artifact", path, folder))

    def close(self, failed=False):
        self.log.append((self.name, "close", failed))


def say_everything(tracker: Tracker) -> None:
    tracker.params({"lr": 0.1})
    tracker.metrics({"loss": 2.0}, 128)
    tracker.artifact(Path("a.png"), "grids")
    tracker.close(failed=True)


def test_tee_keeps_the_order_of_its_trackers():
    log = []
    say_everything(Tee([Recorder(log, "first"), Null(), Recorder(log, "second")]))
    assert [name for name, *_ in log] == ["first", "second"] * 4
    assert log[2] == ("first", "metrics", {"loss": 2.0}, 128)
    assert log[-1] == ("second", "close", True)


def test_what_a_sender_says_survives_the_journey_and_leaves_the_run_open():
    log, letters = [], []
    say_everything(Sender(lambda said: letters.append(pickle.dumps(said))))
    for letter in letters:
        pickle.loads(letter).to(Recorder(log))
    assert log == [
        ("", "params", {"lr": 0.1}),
        ("", "metrics", {"loss": 2.0}, 128),
        ("", "artifact", Path("a.png"), "grids"),
    ]
    assert isinstance(pickle.loads(letters[0]), Said)


def write(path: Path, images: list[int], resume_at: int = 0) -> None:
    tracker = Jsonl(path, resume_at)
    for n in images:
        tracker.metrics({"loss": 1 / n}, n)
    tracker.close()


def test_history_of_a_resumed_run_equals_that_of_an_uninterrupted_one(tmp_path):
    write(tmp_path / "whole.jsonl", [10, 20, 30, 40])
    write(tmp_path / "parts.jsonl", [10, 20, 30])
    write(tmp_path / "parts.jsonl", [30, 40], resume_at=20)
    assert (tmp_path / "parts.jsonl").read_bytes() == (tmp_path / "whole.jsonl").read_bytes()


def test_a_new_run_starts_a_new_history(tmp_path):
    write(tmp_path / "h.jsonl", [10, 20])
    write(tmp_path / "h.jsonl", [5])
    assert [row["images"] for row in read(tmp_path / "h.jsonl")] == [5]


def test_a_line_that_a_crash_cut_short_is_dropped(tmp_path):
    write(tmp_path / "h.jsonl", [10, 20])
    with (tmp_path / "h.jsonl").open("a") as file:
        file.write('{"images": 30, "lo')
    write(tmp_path / "h.jsonl", [30], resume_at=20)
    assert [row["images"] for row in read(tmp_path / "h.jsonl")] == [10, 20, 30]


def test_each_line_is_on_disk_as_soon_as_it_is_said(tmp_path):
    tracker = Jsonl(tmp_path / "h.jsonl")
    tracker.metrics({"loss": 0.5}, 7)
    assert [*read(tmp_path / "h.jsonl")] == [{"images": 7, "loss": 0.5}]
    tracker.close()


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_histories_are_strict_json(tmp_path, value):
    tracker = Jsonl(tmp_path / "h.jsonl")
    tracker.metrics({"loss": value}, 1)
    tracker.close()

    def refuse(constant):
        raise AssertionError(constant)

    assert json.loads((tmp_path / "h.jsonl").read_text(), parse_constant=refuse) == {"images": 1, "loss": None}
