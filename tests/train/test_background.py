"""Files written beside the training: what they hold, that nothing waits for them, and where their errors surface."""

import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from every_run import every_run, make_inputs

from cmcore.assemble.training import Inputs, train_run
from cmcore.tracking.base import Null
from cmcore.train import checkpoint, session
from cmcore.train.background import Writer, held
from cmcore.train.session import CHECKPOINT

PATIENCE = 60.0  # seconds that only a failing test waits for


def test_a_held_tensor_is_that_of_the_moment_and_shared_memory_stays_shared():
    x, y = torch.arange(6.0).reshape(2, 3), torch.ones((), dtype=torch.int64)
    copy = held({"a": x, "b": x, "turned": x.t(), "row": x[0], "y": y, "none": torch.zeros(0)})
    x.zero_(), y.zero_()
    copy.ready()
    a = copy.tensors["a"]
    assert torch.equal(a, torch.arange(6.0).reshape(2, 3))
    assert copy.tensors["b"].data_ptr() == a.data_ptr() != x.data_ptr()
    assert torch.equal(copy.tensors["turned"], a.t())
    assert torch.equal(copy.tensors["row"], a[0])
    assert copy.tensors["y"] == 1


def test_the_same_bytes_as_of_the_tensors_themselves(tmp_path: Path):
    weight = torch.randn(3, 4, 2, 2).to(memory_format=torch.channels_last)
    tensors = {"x": weight, "same": weight, "n": torch.tensor(3), "half": weight.half()}
    checkpoint.save(tmp_path / "now", tensors, {"images": 1})
    checkpoint.save(tmp_path / "held", held(tensors).tensors, {"images": 1})
    assert (tmp_path / "now").read_bytes() == (tmp_path / "held").read_bytes()


def fail() -> None:
    raise OSError("the disk is full")


def test_an_error_surfaces_at_the_next_write_or_at_the_end():
    done: list[str] = []
    with Writer() as writer:
        writer.start(fail)
        with pytest.raises(OSError, match="the disk is full"):
            writer.start(lambda: done.append("next"))
        writer.start(lambda: done.append("later"))
    assert done == ["later"]
    with pytest.raises(OSError, match="the disk is full"), Writer() as writer:
        writer.start(fail)
    with pytest.raises(KeyError, match="its own"), Writer() as writer:
        raise KeyError(writer.start(fail), "its own")


def test_one_write_at_a_time_in_order():
    free, seen = threading.Event(), list[int]()

    def first() -> None:
        assert free.wait(PATIENCE)
        seen.append(1)

    with Writer() as writer:
        writer.start(first)
        assert seen == []
        threading.Timer(0.05, free.set).start()
        writer.start(lambda: seen.append(2))
        assert seen[0] == 1
    assert seen == [1, 2]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Inputs:
    return make_inputs(tmp_path_factory.mktemp("inputs"))["ict"]


def train(inputs: Inputs, folder: Path, on_progress: Any = lambda *_: None) -> dict[str, bytes]:
    run = every_run(images=512, log_images=64).run("ict")
    final = train_run(run, inputs, folder, tracker=Null(), on_progress=on_progress)
    return {path.relative_to(final).as_posix(): path.read_bytes() for path in final.rglob("*") if path.is_file()}


def test_training_goes_on_while_a_checkpoint_is_written(
    inputs: Inputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """The first checkpoint is held back until a line of the history after it has been reached, without its state."""
    real, after, images = session.checkpoint.save, threading.Event(), list[int]()

    def save(path: Path, tensors: Any, meta: Any) -> None:
        if path.name == CHECKPOINT and not images:
            images.append(meta["images"])
            assert after.wait(PATIENCE), "training waits for its checkpoint"
        real(path, tensors, meta)
        if path.name == CHECKPOINT:
            saved.append(checkpoint.load(path, "players/student/optimiser/0/step")[0][""].item())

    def on_progress(done: int, total: int) -> None:
        if done > 64:
            after.set()

    saved: list[float] = []
    expected = train(inputs, tmp_path / "plain")
    monkeypatch.setattr(session.checkpoint, "save", save)
    assert train(inputs, tmp_path / "held", on_progress) == expected
    assert images == [64]
    step = every_run().run("ict").train.batch
    assert saved == [images / step for images in range(64, 513, 64)]  # each is of its own moment


def test_a_checkpoint_that_cannot_be_written_ends_the_run_and_the_one_before_continues_it(
    inputs: Inputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    real, count = session.checkpoint.save, [0]

    def save(path: Path, tensors: Any, meta: Any) -> None:
        count[0] += path.name == CHECKPOINT
        if count[0] == 3:
            fail()
        real(path, tensors, meta)

    with monkeypatch.context() as patch:
        patch.setattr(session.checkpoint, "save", save)
        with pytest.raises(OSError, match="the disk is full"):
            train(inputs, tmp_path / "broken")
    assert count[0] == 3
    assert checkpoint.header(tmp_path / "broken" / CHECKPOINT)["images"] == 128
    assert train(inputs, tmp_path / "broken") == train(inputs, tmp_path / "whole")
