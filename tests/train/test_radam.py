"""RAdam for a GPU: PyTorch's, in few operations, behind a gate that keeps every bit."""

import copy
from collections import Counter

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from cmcore.train.gate import gated_step
from cmcore.train.radam import FusedRAdam

SETTINGS = {"lr": 1e-2, "betas": (0.9, 0.99), "eps": 1e-8}


def weights(count: int = 3) -> list[nn.Parameter]:
    random = torch.Generator().manual_seed(0)
    return [nn.Parameter(torch.randn(3, index + 1, generator=random)) for index in range(count)]


def give(parameters: list[nn.Parameter], step: int, without: set[int] = frozenset()) -> None:
    random = torch.Generator().manual_seed(step + 1)
    for index, parameter in enumerate(parameters):
        gradient = 10 ** (index % 3 - 1) * torch.randn(parameter.shape, generator=random)
        parameter.grad = None if index in without else gradient


def close(ours: list[nn.Parameter], theirs: list[nn.Parameter]) -> None:
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("betas", [(0.9, 0.99), (0.0, 0.999), (0.9, 0.9999)])
def test_the_steps_of_pytorchs(betas: tuple[float, float]):
    ours, theirs = weights(), weights()
    settings = {**SETTINGS, "betas": betas}
    a, b = FusedRAdam(ours, **settings), torch.optim.RAdam(theirs, **settings)
    for step in range(12):  # the rectification begins at the sixth
        give(ours, step), give(theirs, step)
        a.step(), b.step()
        close(ours, theirs)
    for mine, other in zip(a.state_dict()["state"].values(), b.state_dict()["state"].values(), strict=True):
        assert mine.keys() == other.keys()
        assert all(torch.allclose(mine[key], other[key], rtol=1e-5) for key in mine)


def test_tensors_without_a_gradient_count_for_themselves():
    ours, theirs = weights(), weights()
    a, b = FusedRAdam(ours, **SETTINGS), torch.optim.RAdam(theirs, **SETTINGS)
    for step, without in enumerate([set(), set(), {1}, {1}, {0, 2}, set(), {2}, set(), set()]):
        give(ours, step, without), give(theirs, step, without)
        a.step(), b.step()
        close(ours, theirs)
    counts = [float(a.state[parameter]["step"]) for parameter in ours]
    assert counts == [float(b.state[parameter]["step"]) for parameter in theirs] == [8, 7, 7]


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 1.0])
def test_a_closed_gate_keeps_every_bit(bad: float):
    ours, other = weights(), weights()
    a, b = FusedRAdam(ours, **SETTINGS), FusedRAdam(other, **SETTINGS)
    for step in range(8):
        give(ours, step), give(other, step)
        gated_step(a, torch.tensor(True))
        gated_step(b, torch.tensor(True))
        for parameter in ours:
            parameter.grad = torch.full_like(parameter, bad)
        gated_step(a, torch.tensor(False))
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(ours, other, strict=True))
    for mine, theirs in zip(a.state.values(), b.state.values(), strict=True):
        assert all(torch.equal(mine[key], theirs[key]) for key in mine)


def test_a_closed_first_step_leaves_what_a_fresh_start_has():
    ours = weights()
    before, a = copy.deepcopy(ours), FusedRAdam(ours, **SETTINGS)
    give(ours, 0)
    gated_step(a, torch.tensor(False))
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(ours, before, strict=True))
    assert all(not tensor.any() for state in a.state.values() for tensor in state.values())


def test_either_goes_on_from_the_others_state():
    ours, theirs = weights(), weights()
    a, b = FusedRAdam(ours, **SETTINGS), torch.optim.RAdam(theirs, **SETTINGS)
    for step in range(7):
        give(theirs, step)
        b.step()
    with torch.no_grad():
        for mine, other in zip(ours, theirs, strict=True):
            mine.copy_(other)
    a.load_state_dict({"state": copy.deepcopy(b.state_dict()["state"]), "param_groups": a.state_dict()["param_groups"]})
    assert len({id(state["step"]) for state in a.state.values()}) == 1
    for step in range(7, 10):
        give(ours, step), give(theirs, step)
        a.step(), b.step()
    close(ours, theirs)


class Called(TorchDispatchMode):
    """Counts operations by name."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.counts[func.name()] += 1
        return func(*args, **(kwargs or {}))


def test_the_number_of_operations_does_not_grow_with_the_tensors_and_none_asks_the_device():
    counts = []
    for count in (2, 40):
        parameters = weights(count)
        optimiser = FusedRAdam(parameters, **SETTINGS)
        for step in range(2):
            give(parameters, step)
            with Called() as called:
                gated_step(optimiser, torch.tensor(True))
        assert called.counts["aten::_local_scalar_dense"] == 0
        counts.append(sum(n for name, n in called.counts.items() if name not in ("aten::view.dtype", "aten::detach")))
    assert counts[0] == counts[1] < 70
