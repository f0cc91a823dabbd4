"""The counts of a step: proportions that are known, and that the optimiser's calls do not grow with the network."""

import pytest
import torch

from benchmarks.counts import Saved, main, optimisers, steps
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


def test_it_prints(case: Case, capsys: pytest.CaptureFixture[str]):
    main(["--net", "tiny", "--batch", "2", "--methods", "edm"])
    assert capsys.readouterr().out.count("\n| --- ") == 2
