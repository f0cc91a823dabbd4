"""Steps behind a flag on the device: what they leave alone, and that the host neither waits nor asks."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from faulty import Overflows, copied, gate
from tiny import METHODS, batches, flat, make_method, make_state, make_train
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from cmcore.rng import Draws
from cmcore.tracking.base import Null
from cmcore.train import ema, steps
from cmcore.train.background import Writer
from cmcore.train.checkpoint import load
from cmcore.train.gate import NonFiniteError, Watch, choose, gated_step
from cmcore.train.session import CHECKPOINT, HISTORY, run_session
from cmcore.train.state import state_tensors

ASKS = {"aten::_local_scalar_dense", "aten::is_nonzero", "aten::equal", "aten::nonzero", "aten::masked_select"}


class Asked(TorchDispatchMode):
    """Counts the operations for whose result the host has to wait."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.name().split(".")[0]
        if name in ASKS:
            self.counts[name] += 1
        return func(*args, **(kwargs or {}))


class Launched(TorchDispatchMode):
    """Counts the operations that compute something; on a GPU each is a kernel, or a few for all its tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        views = ("aten::view", "aten::detach", "aten::empty", "aten::alias")
        self.count += not func.name().startswith(views)
        return func(*args, **(kwargs or {}))


def fused(parameters: Any, **options: Any) -> torch.optim.Optimizer:
    """As on a GPU."""
    return torch.optim.Adam(parameters, **options, fused=True)


OPTIMISERS = {"fused": fused, "adam": torch.optim.Adam, "radam": torch.optim.RAdam}


@pytest.mark.parametrize("kind", OPTIMISERS)
def test_a_closed_gate_leaves_every_bit_and_an_open_one_is_not_there(kind: str):
    start = torch.linspace(-1, 1, 12).reshape(3, 4)
    ours, theirs = (nn.Parameter(start.clone()) for _ in range(2))
    gated, plain = (OPTIMISERS[kind]([parameter], lr=0.1) for parameter in (ours, theirs))
    for k, go in enumerate([False, True, True, False, True]):
        ours.grad = ours.detach().cos() + k if go else torch.full_like(ours, float("nan"))
        gated_step(gated, torch.tensor(go))
        if go:
            theirs.grad = theirs.detach().cos() + k
            plain.step()
        assert torch.equal(ours, theirs)
    slots, expected = (optimiser.state_dict()["state"][0] for optimiser in (gated, plain))
    assert slots.keys() == expected.keys()
    assert all(torch.equal(slots[name], expected[name]) for name in expected)


def test_a_gate_costs_a_few_operations_however_many_parameters_there_are():
    counts: list[int] = []
    for many in (3, 30):
        parameters = [nn.Parameter(torch.ones(2)) for _ in range(many)]
        optimiser = torch.optim.RAdam(parameters, foreach=True)
        for parameter in parameters:
            parameter.grad = torch.ones(2)
        gated_step(optimiser, torch.tensor(True))
        with Launched() as plain:
            optimiser.step()
        with Launched() as gated:
            gated_step(optimiser, torch.tensor(True))
        counts.append(gated.count - plain.count)
    assert counts[0] == counts[1] <= 6


def test_a_closed_gate_chooses_the_old_bits_whatever_they_are():
    wild = torch.tensor([float("nan"), float("inf"), -float("inf"), -0.0, 1e-45, 3.4e38, -1.5])
    for go in (True, False):
        new, old = [wild.clone(), wild.flip(0)], [wild.flip(0), torch.zeros(7)]
        expected = [tensor.clone() for tensor in (new if go else old)]
        choose(torch.tensor(go), new, old)
        assert all(torch.equal(a.view(torch.int32), b.view(torch.int32)) for a, b in zip(new, expected, strict=True))


def test_gated_averages():
    average, now = [torch.randn(5), torch.randn(2, 3)], [torch.randn(5), torch.randn(2, 3)]
    plain, opened, closed = ([tensor.clone() for tensor in average] for _ in range(3))
    ema.update(plain, now, 0.9)
    ema.update(opened, now, 0.9, torch.tensor(True))
    ema.update(closed, now, 0.9, torch.tensor(False))
    torch.testing.assert_close(opened, plain)
    assert all(torch.equal(a, b) for a, b in zip(closed, average, strict=True))


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_the_loop_asks_the_device_for_nothing(name: str, precision: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("cmcore.train.state.build_optimiser", lambda ps, config: fused(ps, lr=config.lr))
    # A new grid is checked where it is made, on the CPU, and not by the device.
    method = make_method(name, **({"s0": 10, "s1": 10} if name == "ict" else {}))
    config = make_train(precision=precision, clip_norm=1.0, images=160)
    state = make_state(method, config, noise=0.3, dropout=0.1)
    with gate(deferred=True):
        loop = steps.steps(state, method, batches, config)
        next(loop)
        with Asked() as asked:
            taken = len(list(loop))
    # CTM draws its number of solver steps on the CPU, once a step: reading that asks no device.
    assert asked.counts == ({"aten::_local_scalar_dense": taken} if name == "ctm" else {})


def test_the_direct_loop_does_ask_so_the_counter_counts():
    method, config = make_method("edm"), make_train()
    with Asked() as asked:
        list(steps.steps(make_state(method, config), method, batches, config))
    assert asked.counts["aten::_local_scalar_dense"] >= config.steps


@pytest.mark.parametrize("name", ["edm", "ct"])
@pytest.mark.parametrize("optimiser", ["adam", "radam"])
def test_the_deferred_loop_takes_the_steps_of_the_direct_one(name: str, optimiser: str):
    method, config, ends = make_method(name), make_train(optimiser=optimiser), []
    for deferred in (False, True):
        state = make_state(method, config, noise=0.3)
        with gate(deferred):
            list(steps.steps(state, method, batches, config))
        ends.append(flat([*state.parameters, *state.ema["ema"]]))
    torch.testing.assert_close(ends[1], ends[0], rtol=1e-5, atol=1e-6)


class Slow(Watch):
    """A device that is two steps behind."""

    def look(self) -> None:
        while len(self._waiting) > 2:
            self._judge(self._waiting.popleft())

    def settle(self) -> None:
        while self._waiting:
            self._judge(self._waiting.popleft())


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(steps, "Watch", Slow)
    with gate(deferred=True):
        yield


@pytest.mark.parametrize("kind", ["gradient", "loss"])
@pytest.mark.usefixtures("slow")
def test_a_bad_step_that_is_heard_of_late_has_changed_nothing(kind: str):
    method, config = Overflows(make_method("edm"), lambda k: k == 3, kind), make_train()
    state = make_state(method, config)
    loop = steps.steps(state, method, batches, config)
    for _ in range(3):
        next(loop)
    good = copied(state)
    assert [next(loop).images, next(loop).images] == [128, 160]
    with pytest.raises(NonFiniteError, match=r"at step 4 \(96 images seen\); the step was not taken"):
        next(loop)
    assert all(torch.equal(tensor, good[name]) for name, tensor in state_tensors(state).items())


@pytest.mark.usefixtures("slow")
def test_the_end_of_a_run_waits_for_its_last_step():
    method, config = Overflows(make_method("edm"), lambda k: k == 9), make_train()
    with pytest.raises(NonFiniteError, match="at step 10 "):
        list(steps.steps(make_state(method, config), method, batches, config))


@pytest.mark.usefixtures("slow")
def test_nothing_is_saved_or_shown_of_a_bad_step(tmp_path: Path):
    method, config = Overflows(make_method("edm"), lambda k: k == 4), make_train(log_images=160, snapshots=2)
    shown: list[int] = []
    with pytest.raises(NonFiniteError, match=r"at step 5 .*there is no checkpoint yet"), Writer() as writer:
        run_session(
            make_state(method, config), method, batches, config,
            folder=tmp_path, fingerprint="f", tracker=Null(), on_progress=lambda *_: None,
            on_snapshot=lambda state: shown.append(state.images), writer=writer,
        )  # fmt: skip
    assert (shown, (tmp_path / HISTORY).read_text()) == ([], "")
    with Writer() as writer:
        run_session(
            make_state(method.inner, config), method.inner, batches, replace(config, images=160), folder=tmp_path,
            fingerprint="f", tracker=Null(), on_progress=lambda *_: None, on_snapshot=lambda _: None, writer=writer,
        )  # fmt: skip
    assert load(tmp_path / CHECKPOINT)[1]["images"] == 160


def test_draws_ask_for_nothing_either():
    with Asked() as asked:
        draws = Draws(1, 64, 32, slice(8, 16))
        draws.normal((3, 4), stream="a"), draws.uniform(stream="b")
        with draws.dropout():
            torch.nn.functional.dropout(torch.ones(4))
    assert asked.counts == {}
