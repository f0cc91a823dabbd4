"""Measured times: of this thread's work, the least, and within a limit."""

import time

import numpy as np
import pytest
import torch
from tiny_runs import tiny_project

from cmcore.budget import machines, measure
from cmcore.budget.measure import seconds_of


@pytest.fixture
def clocks(monkeypatch):
    """Clocks of the processor and of the wall that `spend` moves on."""
    now = {"processor": 0.0, "wall": 0.0}
    monkeypatch.setattr(measure.time, "thread_time", lambda: now["processor"])
    monkeypatch.setattr(measure.time, "perf_counter", lambda: now["wall"])

    def spend(processor: float, wall: float) -> None:
        now["processor"] += processor
        now["wall"] += wall

    return spend


def calls_of(spend, times: list[tuple[float, float]]) -> tuple[float, int]:
    """The measured time, and the number of calls, which take one time after the other and then the last again."""
    made = 0

    def call() -> None:
        nonlocal made
        spend(*times[min(made, len(times) - 1)])
        made += 1

    return seconds_of(call), made


def test_other_programs_do_not_count(clocks):
    """Only the time that this thread had the processor."""
    assert calls_of(clocks, [(0.5, 0.5), (0.2, 0.2), (0.25, 2.0), (0.2, 1.0)])[0] == pytest.approx(0.2)


def test_the_first_call_does_not_count(clocks):
    assert calls_of(clocks, [(0.01, 0.01), (0.2, 0.2)])[0] == pytest.approx(0.2)


@pytest.mark.parametrize(("processor", "wall", "calls"), [
    (0.3, 0.3, 4),  # LEAST and one to warm up
    (0.06, 0.06, 8),  # SECONDS in all
    (2.0, 2.0, 3),  # LONG
    (0.01, 20.0, 2),  # PATIENCE
])  # fmt: skip
def test_a_measurement_ends(clocks, processor, wall, calls):
    assert calls_of(clocks, [(processor, wall)])[1] == calls


def test_the_rate_of_this_processor_is_one_of_its_own_time(monkeypatch):
    clock = iter(range(10**6))
    monkeypatch.setattr(machines.time, "thread_time", lambda: next(clock))  # a product takes a second
    assert machines.this_cpu(64, seconds=0.0).fp32 == 2 * 64**3


def test_the_clock_of_the_processor_is_that_of_real_work():
    a = torch.ones(400, 400)
    torch.mm(a, a)
    start = time.thread_time()
    found = seconds_of(lambda: torch.mm(a, a), seconds=0.05)
    assert 0 < found < time.thread_time() - start


def test_networks_are_not_compiled_for_a_few_steps(monkeypatch):
    monkeypatch.setattr(torch.nn.Module, "compile", None)
    run = tiny_project(compile=True).run("edm")
    data = measure.sample_data(np.zeros((16, 1, 8, 8), np.uint8), 0)
    assert measure.training_seconds(run, data, 8, seconds=0.0) > 0
