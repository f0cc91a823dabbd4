"""The counts of a step: proportions that are known, and that the optimiser's calls do not grow with the network."""

import pytest
import torch

from benchmarks.counts import Kernels, Saved, compiled, main, optimisers, steps
from benchmarks.gpu import TINY
from benchmarks.speed_jobs import NETS, Case


@pytest.fixture
def case(monkeypatch: pytest.MonkeyPatch) -> Case:
    monkeypatch.setitem(NETS, "tiny", {"kind": "mlp", "shape": (1, 4), "hidden": 16, "blocks": 1})
    return Case("tiny", 8, torch.device("cpu"), {"optimiser": "adam"})


def test_operations_of_the_methods(case: Case):
    rows = {row["method"]: row for row in steps(case, ["edm", "ect", "cd"])}
    # Forward, backward twice that, and each further pass without a gradient.
    assert rows["ect"]["operations over EDM"] == pytest.approx(4 / 3, abs=0.08)
    assert rows["cd"]["operations over EDM"] == pytest.approx(2, abs=0.2)
    assert all(row["calls"] > 0 and row["peak MiB"] > row["saved MiB"] > 0 for row in rows.values())


def test_derivatives_take_little_memory(monkeypatch: pytest.MonkeyPatch):
    """At most 1.6 times that of an EDM step in a network of some depth, and nothing is kept for the backward pass."""
    monkeypatch.setitem(NETS, "tiny", {**TINY, "model_channels": 16, "channel_mult": (1, 1), "blocks": 3})
    case = Case("tiny", 8, torch.device("cpu"), {"optimiser": "adam"})
    edm, *others = steps(case, ["edm", "sct", "scd", "meanflow"])
    for row in others:
        assert 1 <= row["memory over EDM"] < 1.6
        assert row["saved MiB"] < 1.02 * edm["saved MiB"]


def test_what_a_linear_layer_saves_is_its_input():
    layer, x = torch.nn.Linear(64, 8), torch.randn(32, 64)
    saved = Saved(layer.parameters())
    with saved:
        layer(layer(x) @ layer.weight.detach()).sum()
    assert saved.bytes == 4 * (32 * 64 + 32 * 64)


def test_the_optimiser_has_few_calls(case: Case):
    theirs, ours = optimisers(case)
    assert theirs["tensors"] == ours["tensors"]
    assert ours["calls"] < 70 < theirs["calls"]


class Layers(torch.nn.Module):
    """PyTorch compiles no module of its own by itself."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = torch.nn.Linear(8, 16), torch.nn.Linear(16, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(self.first(x).sigmoid())


def test_what_a_compiled_network_starts():
    torch.compiler.reset()
    net, x = Layers(), torch.randn(4, 8)
    net.compile()
    with Kernels() as forward:
        y = net(x)
    # Two products with their biases, and the sigmoid between them.
    assert (forward.libraries, forward.kernels, sum(forward.counts.values())) == (2, 1, 0)
    with Kernels() as backward:
        y.backward(torch.ones_like(y))
    # The gradients of two weights and of what is between them, and of the biases and the sigmoid.
    assert backward.libraries == 3
    assert 2 <= backward.kernels <= 3
    with torch.no_grad(), Kernels() as again:
        for _ in range(3):
            net(x)
            x.mul(2)
    assert (again.libraries, again.kernels, again.counts["aten::mul"]) == (6, 3, 3)


@pytest.mark.slow
def test_compiled_steps(case: Case):
    rows = {row["method"]: row for row in compiled(case, ["edm", "ect"])}
    assert rows["edm"]["library calls"] > 0
    assert rows["edm"]["kernels"] < rows["ect"]["kernels"]  # it has a forward pass more
    assert rows["edm"]["in all"] < steps(case, ["edm"])[0]["calls"]
    assert rows["ect"]["calls outside"] < 120  # an optimiser that goes through the tensors has more


def test_it_prints(case: Case, capsys: pytest.CaptureFixture[str]):
    main(["--net", "tiny", "--batch", "2", "--methods", "edm"])
    assert capsys.readouterr().out.count("\n| --- ") == 2
