"""Several workers on one run, here as threads: the sum of their shares is the whole batch."""

import json
import threading
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from tiny_runs import tiny_folder, tiny_inputs, tiny_project
from torch import Tensor

from cmcore.assemble.training import WEIGHTS, train_run
from cmcore.tracking.base import Null
from cmcore.train import checkpoint
from cmcore.train.session import CHECKPOINT, HISTORY
from cmcore.train.steps import Worker, row_slices

WORLD = 2


class Meeting:
    """Sums tensors over threads, and breaks for all when one of them fails."""

    def __init__(self, world: int) -> None:
        self._barrier, self._said = threading.Barrier(world, timeout=30), [[]] * world

    def reduce(self, rank: int, tensors: Sequence[Tensor]) -> None:
        self._said[rank] = [tensor.clone() for tensor in tensors]
        self._barrier.wait()
        for place, tensor in enumerate(tensors):
            tensor.copy_(sum(said[place] for said in self._said))
        self._barrier.wait()

    def leave(self) -> None:
        self._barrier.abort()


def train_together(run, inputs, folders: Sequence[Path]) -> dict[int, BaseException]:
    """Train with a thread for every worker, worker r in folder r, and return what they raised."""
    meeting, raised = Meeting(len(folders)), {}

    def work(rank: int) -> None:
        worker = Worker(rank, len(folders), lambda tensors: meeting.reduce(rank, tensors))
        try:
            train_run(run, inputs, folders[rank], tracker=Null(), on_progress=lambda *_: None, worker=worker)
        except BaseException as error:
            raised[rank] = error
            meeting.leave()

    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(len(folders))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return raised


def alone(run, inputs, folder: Path) -> Path:
    return train_run(run, inputs, folder, tracker=Null(), on_progress=lambda *_: None)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    return tiny_inputs(tmp_path_factory.mktemp("inputs"))


def test_two_workers_give_the_result_of_one_within_floating_point(tmp_path, inputs):
    project = tiny_project(images=1024, micro_batch=16)
    run = project.run("ict")
    folders = [tiny_folder(project, "ict", inputs, tmp_path / name) for name in ("one", "two")]
    expected, _ = checkpoint.load(alone(run, inputs, folders[0]) / WEIGHTS)
    assert train_together(run, inputs, [folders[1]] * WORLD) == {}
    got, _ = checkpoint.load(folders[1] / "final" / WEIGHTS)
    for name, tensor in expected.items():
        torch.testing.assert_close(got[name], tensor, rtol=1e-4, atol=1e-6, msg=name)
    lines = [(folder / "final" / HISTORY).read_text().splitlines() for folder in folders]
    assert len(lines[0]) == len(lines[1])
    for one, two in zip(*lines, strict=True):
        assert json.loads(two) == pytest.approx(json.loads(one), rel=1e-4)


def test_the_shares_of_the_workers_are_the_batch():
    rows = [row for rank in range(4) for part in row_slices(24, 4, Worker(rank, 4)) for row in range(24)[part]]
    assert rows == list(range(24))
    with pytest.raises(ValueError, match=r"multiple of compute.workers = 5, got 24"):
        row_slices(24, 0, Worker(0, 5))


def test_workers_that_resume_at_different_moments_stop(tmp_path, inputs):
    """As they would where each has a disk of its own: the second finds no checkpoint."""
    project = tiny_project(images=512)
    run, folders = project.run("ict"), [tmp_path / "a", tmp_path / "b"]
    alone(run, inputs, folders[0])
    (folders[0] / "final").rename(tmp_path / "away")
    assert (folders[0] / CHECKPOINT).exists()
    errors = train_together(run, inputs, folders)
    assert any("storage that all workers share" in str(error) for error in errors.values())
    assert not (folders[0] / "final").exists()
