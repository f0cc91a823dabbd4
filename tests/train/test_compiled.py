"""Compiling: its time, and training that goes on, with the same bits, where it fails."""

import json
import logging
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import batches, flat, make_method, make_state, make_train
from torch import nn

from cmcore.train import compiled
from cmcore.train.compiled import Clock, or_plain, plain_again
from cmcore.train.gate import NonFiniteError
from cmcore.train.steps import steps
from cmcore.train.timing import Stopwatch, TrainingTime

Backend = Callable[[Any, Any], Any]
compile_module = nn.Module.compile


def at_once(graph: Any, inputs: Any) -> Any:
    """A backend that cannot compile anything, such as one without a C++ compiler."""
    raise RuntimeError("no compiler\nwas found")


def in_the_backward_pass(graph: Any, inputs: Any) -> Any:
    from torch._dynamo.backends.common import aot_autograd
    from torch._functorch.compilers import nop

    return aot_autograd(fw_compiler=nop, bw_compiler=at_once)(graph, inputs)


def later(graph: Any, inputs: Any, count: list[int] = [0]) -> Any:  # noqa: B006 (counts the calls)
    """A backend that fails once a graph has run three times."""

    def run(*args: Any) -> Any:
        count[0] += 1
        if count[0] > 3:
            raise RuntimeError("no compiler was found")
        return graph(*args)

    return run


class Net(nn.Module):
    """PyTorch does not compile a layer of its own by itself."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(1, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x).sin()


def lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What the project itself said."""
    return [record.getMessage() for record in caplog.records if record.name.startswith("cmcore")]


@pytest.fixture(autouse=True)
def nothing_compiled() -> None:
    torch.compiler.reset()


@pytest.mark.parametrize("backend", [at_once, in_the_backward_pass, later])
@pytest.mark.parametrize("name", ["edm", "dmd2"])
def test_training_goes_on_in_the_same_bits_without(
    name: str, backend: Backend, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    method, ends = make_method(name), []
    for compile in (False, True):
        monkeypatch.setattr(nn.Module, "compile", lambda self, **_: compile_module(self, backend=backend))
        config = make_train(images=160, compile=compile)
        state = make_state(method, config, noise=0.3, dropout=0.2)
        losses = [record.values["loss"] for record in steps(state, method, batches, config)]
        ends.append(torch.cat([torch.stack(losses), flat(state.parameters)]))
    assert torch.equal(*ends)
    said = lines(caplog)[0]
    assert len(lines(caplog)) == 1, caplog.messages
    assert said.startswith("networks run uncompiled, as compiling failed; train.compile: false avoids it (")
    assert "no compiler" in said
    assert "\n" not in said


def test_what_is_not_the_compilers_fault_is_raised_as_it_is(caplog: pytest.LogCaptureFixture):
    net, calls = Net(), [0]

    def wrong() -> None:
        calls[0] += 1
        raise KeyError("a mistake")

    with pytest.raises(KeyError, match="a mistake"):
        or_plain([net], wrong)
    assert (calls, lines(caplog)) == ([1], [])
    net.compile(backend="eager")
    with pytest.raises(KeyError, match="a mistake"):
        or_plain([nn.Sequential(net)], wrong)
    assert (calls, len(lines(caplog))) == ([3], 1)
    assert not plain_again([net])


@pytest.mark.parametrize("error", [NonFiniteError("loss nan"), torch.OutOfMemoryError("CUDA out of memory")])
def test_a_bad_loss_and_a_full_memory_are_not_tried_again(error: Exception):
    net = Net()
    net.compile(backend="eager")

    def wrong() -> None:
        raise error

    with pytest.raises(type(error)):
        or_plain([net], wrong)
    assert plain_again([net])


def test_the_clock_counts_what_compiling_takes(monkeypatch: pytest.MonkeyPatch):
    clock = Clock()
    clock.watch(), clock.watch()
    net = Net()
    net(torch.ones(1, 1))
    assert clock.seconds == 0
    net.compile(backend="eager")
    net(torch.ones(1, 1))
    first = clock.seconds
    assert 0 < first < 60
    net(torch.ones(1, 1))
    assert clock.seconds == first


def test_compiling_is_part_of_the_time_and_adds_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(compiled, "CLOCK", clock := Clock())
    clock._spent = 5.0  # of another run in this process
    watch = Stopwatch(tmp_path / "t", torch.device("cpu"), 1)
    clock._spent = 7.5
    watch.write()
    again = Stopwatch(tmp_path / "t", torch.device("cpu"), 1)
    clock._spent = 8.5
    again.write()
    time = TrainingTime(**json.loads((tmp_path / "t").read_text()))
    assert time.compile_seconds == 3.5
    (tmp_path / "t").write_text('{"seconds": 60.0, "device": "Abacus", "workers": 1}')  # of before it was counted
    assert Stopwatch(tmp_path / "t", torch.device("cpu"), 1).read().seconds >= 60


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_second_process_finds_what_the_first_compiled(tmp_path: Path):
    code = (
        "import sys\n"
        "from cmcore.edge.compile_cache import keep_compiled\n"
        "from cmcore.edge.settings import ComputeConfig\n"
        "keep_compiled(ComputeConfig(compile_cache=sys.argv[1]))\n"
        "import torch\n"
        "from torch._dynamo.utils import counters\n"  # from here on PyTorch's choice of the folder stands
        "from cmcore.layers.linear import Linear\n"  # PyTorch compiles no module of its own
        "net = Linear(4, 4); net.compile()\n"
        "net(torch.ones(2, 4)).sum().backward()\n"
        "found = counters['inductor']['fxgraph_cache_hit'] + counters['aot_autograd']['autograd_cache_hit']\n"
        "print(found > 0)\n"
    )
    kept = {name: value for name, value in os.environ.items() if name != "TORCHINDUCTOR_CACHE_DIR"}
    command = [sys.executable, "-W", "ignore", "-c", code, str(tmp_path / "cache")]
    told = [
        subprocess.run(command, env=kept, check=True, capture_output=True, text=True).stdout.split()[-1]
        for _ in range(2)
    ]
    assert told == ["False", "True"]


def test_a_line_is_logged_once_for_a_run(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    from cmcore.tracking.base import Null
    from cmcore.train.background import Writer
    from cmcore.train.session import run_session

    caplog.set_level(logging.INFO, "cmcore")
    method, config = make_method("edm"), make_train(images=96, log_images=32)
    state = make_state(method, config)
    state.nets.student.net.compile(backend="eager")
    compiled.CLOCK.watch()
    with Writer() as writer:
        run_session(
            state, method, batches, config, folder=tmp_path, fingerprint="f", tracker=Null(),
            on_progress=lambda *_: None, on_snapshot=lambda _: None, writer=writer,
        )  # fmt: skip
    assert [message.startswith("compiling took ") for message in lines(caplog)] == [True]
