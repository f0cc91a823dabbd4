"""How long a run took: over several sessions, without what a kill threw away, and apart from the results."""

import json
import time
from pathlib import Path

import pytest
import torch
from every_run import every_run, make_inputs

from cmcore.assemble import training
from cmcore.assemble.training import train_run
from cmcore.closure import revision
from cmcore.tracking.base import Null
from cmcore.train import timing
from cmcore.train.timing import TIME, Stopwatch, TrainingTime, device_name


def read(path: Path) -> TrainingTime:
    return TrainingTime(**json.loads(path.read_text()))


def test_sessions_add_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    path = tmp_path / TIME
    first = Stopwatch(path, torch.device("cpu"), 1)
    now = 107.0
    first.write()
    now = 109.0  # two more seconds, whose work a kill throws away
    second = Stopwatch(path, torch.device("cpu"), 2)
    now = 110.5
    second.write()
    assert read(path) == TrainingTime(seconds=8.5, device=device_name(torch.device("cpu")), workers=2, code=revision())


def test_the_commits_of_all_sessions_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / TIME
    TrainingTime(seconds=5.0).write(path)  # of before commits were recorded
    for commit in ("a" * 40, "b" * 40, "a" * 40):
        monkeypatch.setattr(timing, "revision", lambda commit=commit: commit)
        Stopwatch(path, torch.device("cpu"), 1).write()
    assert read(path).code == f"unknown, {'a' * 40}, {'b' * 40}"


def test_the_name_of_a_cpu_tells_its_threads():
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        assert device_name(torch.device("cpu")).endswith(", 1 thread")
        torch.set_num_threads(2)
        assert device_name(torch.device("cpu")).endswith(", 2 threads")
    finally:
        torch.set_num_threads(threads)


def test_a_run_says_what_it_took_beside_its_results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    run, inputs, start = (
        every_run(images=256, log_images=64).run("edm"),
        make_inputs(tmp_path / "in")["edm"],
        time.time(),
    )
    final = train_run(run, inputs, tmp_path / "run", tracker=Null(), on_progress=lambda *_: None)
    took = read(tmp_path / "run" / TIME)
    assert 0 < took.seconds < time.time() - start
    assert took.workers == 1
    assert not (final / TIME).exists()
    monkeypatch.setattr(training, "run_session", None)  # a finished run is not run again, nor its time forgotten
    train_run(run, inputs, tmp_path / "run", tracker=Null(), on_progress=lambda *_: None)
    assert read(tmp_path / "run" / TIME) == took
