"""The speed benchmark: its arithmetic, and that it runs."""

import time

import pytest
import torch

from benchmarks.clock import Clock, matrix_rate
from benchmarks.speed import counted, evaluated, markdown, methods, parsed
from benchmarks.speed_jobs import NETS, Case, products, samplers, training

CPU = torch.device("cpu")


@pytest.fixture
def case(monkeypatch: pytest.MonkeyPatch) -> Case:
    monkeypatch.setitem(NETS, "tiny", {"kind": "mlp", "shape": (1, 4), "hidden": 16, "blocks": 1})
    return Case("tiny", 8, CPU, {})


def test_the_least_of_the_repeats_counts_and_the_first_does_not():
    waits = iter([0.05, 0.0, 0.02])
    least = Clock("wall", CPU).least({"job": lambda: time.sleep(next(waits))}, 2)["job"]
    assert least < 0.015


def test_the_rate_of_a_product_is_positive():
    assert matrix_rate(Clock("cpu", CPU), torch.float32, size=64, repeats=2) > 1e6


def test_operations_and_memory_of_a_product():
    a, b, kept = torch.randn(32, 64), torch.randn(64, 16), []
    flops, peak = counted(lambda: kept.append(a @ b), CPU)
    assert (flops, peak) == (2 * 32 * 64 * 16, 4 * 32 * 16)


def test_every_method_is_timed_against_edm(case: Case):
    rows = methods(case, Clock("wall", CPU), 1, ["edm", "ect", "sct"], rate=1e9)
    assert [row["method"] for row in rows] == ["edm", "ect", "sct"]
    assert rows[0]["over EDM"] == 1
    # One more forward pass of three, and so has the derivative.
    assert [row["GFLOP"] / rows[0]["GFLOP"] for row in rows] == pytest.approx([1, 4 / 3, 4 / 3], abs=0.08)
    assert all(row["peak MiB"] > 0 and row["images/s"] > 0 for row in rows)


def test_the_products_alone_are_those_of_the_step(case: Case):
    (step, _), (alone, _) = (counted(job, CPU) for job in (training(case, "edm"), products(case)))
    assert alone == step


def test_samplers_and_evaluation_run(case: Case):
    assert len(samplers(case)) == 3
    for job in samplers(case).values():
        job()
    (row,) = evaluated(case, Clock("wall", CPU), 1, count=2)
    assert all(value > 0 for value in row.values())
    assert markdown([row]).count("\n") == 2


def test_the_command_line_names_what_is_wrong(capsys: pytest.CaptureFixture[str]):
    assert parsed(["--methods", "ect"]).methods == ["edm", "ect"]
    with pytest.raises(SystemExit):
        parsed(["--parts", "speed"])
    assert "expected some of methods, products" in capsys.readouterr().err
