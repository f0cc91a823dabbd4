"""Several workers on one run, here as threads: the sum of their shares is the whole batch."""

import json
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from tiny import batches, make_method, make_state, make_train
from tiny_runs import tiny_folder, tiny_inputs, tiny_project
from torch import Tensor, nn

from cmcore.assemble.training import WEIGHTS, train_run
from cmcore.tracking.base import Null
from cmcore.train import checkpoint
from cmcore.train.session import CHECKPOINT, HISTORY
from cmcore.train.settings import AdapterConfig
from cmcore.train.steps import row_slices, steps
from cmcore.train.workers import GradientSums, Worker

WORLD = 2


class Meeting:
    """Sums tensors over threads, and breaks for all when one of them fails."""

    def __init__(self, world: int) -> None:
        self._barrier, self._said = threading.Barrier(world, timeout=30), [torch.empty(0)] * world

    def begin(self, rank: int, tensor: Tensor) -> Callable[[], None]:
        self._said[rank] = tensor.clone()
        self._barrier.wait()
        tensor.copy_(sum(self._said))
        self._barrier.wait()
        return lambda: None

    def leave(self) -> None:
        self._barrier.abort()


def train_together(run, inputs, folders: Sequence[Path]) -> dict[int, BaseException]:
    """Train with a thread for every worker, worker r in folder r, and return what they raised."""
    meeting, raised = Meeting(len(folders)), {}

    def work(rank: int) -> None:
        worker = Worker(rank, len(folders), begin=lambda tensor: meeting.begin(rank, tensor))
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


@pytest.mark.parametrize("adapter", [None, AdapterConfig(rank=3, alpha=6.0)], ids=["whole", "adapter"])
def test_two_workers_give_the_result_of_one_within_floating_point(tmp_path, inputs, adapter):
    project = tiny_project(images=1024, micro_batch=16)
    run = project.run("ict")
    run = replace(run, train=replace(run.train, adapter=adapter))
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


# Sums that begin during the backward pass


class Mail:
    """Sums over two workers that hold the same, and an account of what happened when."""

    def __init__(self) -> None:
        self.events: list[str] = []

    def begin(self, tensor: Tensor) -> Callable[[], None]:
        self.events.append(f"sum of {tensor.numel()}")
        return lambda: (self.events.append("wait"), tensor.mul_(2))[0]

    def worker(self) -> Worker:
        return Worker(0, 2, begin=self.begin)


def layers() -> nn.Sequential:
    """Four layers of 4 x 4 weights."""
    torch.manual_seed(0)
    return nn.Sequential(*(nn.Linear(4, 4, bias=False) for _ in range(4)))


def test_sums_begin_before_the_backward_pass_ends():
    net, mail = layers(), Mail()
    for index, layer in enumerate(net):
        layer.weight.register_post_accumulate_grad_hook(lambda _, index=index: mail.events.append(f"gradient {index}"))
    sums = GradientSums(net.parameters(), mail.worker(), size=2 * 16 * 4)  # two weights in a bucket
    x = torch.randn(3, 4)
    expected = torch.autograd.grad(net(x).sum(), list(net.parameters()))
    sums.prepare(last=False)
    net(x).sum().backward()
    assert mail.events == ["gradient 3", "gradient 2", "gradient 1", "gradient 0"], "only the last pass sums"
    mail.events.clear()
    sums.prepare(last=True)
    net(x).sum().backward()
    assert mail.events == ["gradient 3", "gradient 2", "sum of 32", "gradient 1", "gradient 0", "sum of 32"]
    sums.finish()
    assert mail.events[6:] == ["wait", "wait"]
    for parameter, gradient in zip(net.parameters(), expected, strict=True):  # of two passes and two workers
        torch.testing.assert_close(parameter.grad, 4 * gradient)


def test_buckets_are_summed_in_the_same_order_whichever_gradient_comes_first():
    a, b = (nn.Parameter(torch.ones(n)) for n in (2, 3))
    for first, second in ((a, b), (b, a)):
        mail = Mail()
        sums = GradientSums([a, b], mail.worker(), size=1)
        sums.prepare(last=True)
        for parameter in (first, second):
            parameter.grad = None
            parameter.sum().backward()
        sums.finish()
        assert mail.events == ["sum of 3", "sum of 2", "wait", "wait"]


def test_a_parameter_without_a_gradient_keeps_none():
    net, mail = layers(), Mail()
    sums = GradientSums(net.parameters(), mail.worker(), size=2 * 16 * 4)
    sums.prepare(last=True)
    net[:3](torch.ones(1, 4)).sum().backward()
    sums.finish()
    assert mail.events == ["sum of 16", "sum of 32", "wait", "wait"]
    assert [parameter.grad is None for parameter in net.parameters()] == [False, False, False, True]


def test_the_sum_of_a_gradient_lies_in_memory_as_its_parameter():
    net = nn.Conv2d(3, 5, 3).to(memory_format=torch.channels_last)
    sums = GradientSums(net.parameters(), Mail().worker())
    (expected,) = torch.autograd.grad(net(torch.ones(1, 3, 5, 5)).square().sum(), [net.weight])
    sums.prepare(last=True)
    net(torch.ones(1, 3, 5, 5)).square().sum().backward()
    sums.finish()
    assert net.weight.grad.stride() == net.weight.stride()
    torch.testing.assert_close(net.weight.grad, 2 * expected)


@pytest.mark.parametrize("micro", [0, 4])
def test_a_step_sums_once_however_the_batch_is_cut(micro: int, monkeypatch: pytest.MonkeyPatch):
    method, config, mail = make_method("edm"), make_train(images=64, micro_batch=micro), Mail()
    state = make_state(method, config)
    numbers = sum(parameter.numel() for parameter in state.parameters)
    monkeypatch.setattr("cmcore.train.steps.GradientSums", partial(GradientSums, size=4 * numbers // 2))
    list(steps(state, method, batches, config, mail.worker()))
    sums = [int(event.split()[-1]) for event in mail.events if event != "wait"]
    assert len(sums) == 2 * 3, "two steps, of two buckets and of what is logged"
    assert [sum(sums[index : index + 2]) for index in (0, 3)] == [numbers, numbers]
