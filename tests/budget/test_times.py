"""Times of the stages: one formula for `cmlab new` and `cmlab plan --gpu cpu`, from steps that are measured."""

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import photographs
import pytest
from every_run import every_run

from cmcore.assemble.project import Project, load_project
from cmcore.budget import choose, times
from cmcore.budget.host import Host
from cmcore.budget.machines import Machine
from cmcore.budget.plan import Costs, Setting, data_shape
from cmcore.budget.times import Times, measured, operations, plan_here, probe_rows, stage_seconds, stand_in
from cmcore.closure import ROOT
from cmcore.commands import new as command
from cmcore.commands import plan
from cmcore.commands.new import new
from cmcore.config import ConfigError

HERE = Setting(Machine("cpu", "this processor", 16e9, 1e10))
TRAINING, FORWARD = 2e-4, 5e-5  # seconds by image


@pytest.fixture
def known(monkeypatch):
    """Steps of a known time, whoever measures them."""
    for module in (choose, times):
        monkeypatch.setattr(module, "training_seconds", lambda run, *of, **more: TRAINING * (1 + (run.method == "ect")))
        monkeypatch.setattr(module, "forward_seconds", lambda *of, **more: FORWARD)
        monkeypatch.setattr(module, "feature_seconds", lambda *of, **more: (1e-4, 1e-5))
    monkeypatch.setattr(command, "this_host", lambda: Host(cores=2, memory=16e9))
    monkeypatch.setattr(plan, "cores", lambda: 2)


def cells(lines: list[str], run: str) -> list[str]:
    """A row of the first table with that run."""
    line = next(line for line in lines if line.startswith(f"{run} "))
    return re.split(r"  +", line)


@pytest.mark.usefixtures("known")
def test_new_and_plan_say_the_same(tmp_path):
    root = tmp_path / "project"
    (root / "workloads").mkdir(parents=True)
    data = photographs.photographs(tmp_path / "photographs")
    options = {"budget": "20min", "methods": "edm,ect", "say": lambda line: None}
    wrote = new("mine", data, root, **options)
    planned = plan.lines(root, "mine", gpu="cpu")
    for run in ("edm", "ect"):
        ours, theirs = cells(wrote, run), cells(planned, run)
        assert theirs[-2:] == ours[5:7], "training and evaluation"
    total = re.search(r"about (\S+ \w+) of", "\n".join(wrote))
    assert total is not None
    # The time that it takes to decode the images is in one of them; here less than a tenth of a second.
    assert any(line.startswith(f"total: {total[1]}, ") for line in planned)
    assert "~" not in "\n".join(planned)
    assert "1 stage of 2 threads at a time" in "\n".join(planned)


@pytest.fixture(scope="module")
def digits() -> Project:
    return load_project(ROOT / "workloads/digits.yaml")


def test_a_step_of_every_method_is_measured(monkeypatch):
    """Real ones, in a time in proportion to that of a step."""
    monkeypatch.setattr("cmcore.budget.measure.LEAST", 1)
    monkeypatch.setattr(times, "EACH", 0.0)
    project = every_run(images=4096)
    data = stand_in(project, Path("nowhere"))
    assert data is not None
    found, which = measured(project, data, Costs(data_shape(project, Path("nowhere"))), 1)
    trained = {name for name, run in project.runs.items() if run.weights is None and not run.services}
    assert which == trained
    assert set(found.training) == set(found.forward) == set(project.runs)
    assert all(0 < found.training[name] < 1 for name in trained)
    assert all(0 < found.forward[name] <= found.training[name] for name in trained)


def test_no_more_than_allowed_is_measured(digits, monkeypatch):
    """The rest has the rate of what was."""
    asked = []

    def step(run, data, rows, seconds):
        asked.append(run.name)
        return operations(run, costs) / 1e9

    monkeypatch.setattr(times, "training_seconds", step)
    monkeypatch.setattr(times, "forward_seconds", lambda *of, **more: FORWARD)
    monkeypatch.setattr(times, "feature_seconds", lambda *of: (0.0, 0.0))
    monkeypatch.setattr(times.time, "process_time", lambda: times.ALLOWED * len(asked) / 2)
    data = stand_in(digits, Path("nowhere"))
    costs = Costs(data_shape(digits, Path("nowhere")))
    found, which = measured(digits, data, costs, 1)
    assert len(asked) == len(which) == 2
    for name, run in digits.runs.items():
        assert found.training[name] == pytest.approx(operations(run, costs) / 1e9)


def test_large_networks_and_latents_are_not_measured(monkeypatch):
    def never(*of, **more):
        raise AssertionError("a step was measured")

    for name in ("training_seconds", "forward_seconds"):
        monkeypatch.setattr(times, name, never)
    monkeypatch.setattr(times, "feature_seconds", lambda *of: (0.0, 0.0))
    monkeypatch.setattr(times, "this_cpu", lambda: Machine("cpu", "", 1e9, 1e10))
    whole = load_project(ROOT / "workloads/cifar10.yaml")
    large = replace(whole, runs={"edm": whole.run("edm")})
    here = plan_here(large, HERE, Path("nowhere"), 1, 1)
    assert not here.measured
    run, costs = large.run("edm"), Costs(data_shape(large, Path("nowhere")))
    assert operations(run, costs) * probe_rows(run, run.train.batch, costs) > times.LARGE
    planned = next(one for one in here.plans if one.name == "edm")
    assert planned.seconds == pytest.approx(operations(run, costs) * run.train.total / (0.4 * 1e10), rel=1e-3)


def test_training_seeds_and_weights_from_a_file(digits):
    even = Times(dict.fromkeys(digits.runs, TRAINING), dict.fromkeys(digits.runs, FORWARD), 0.0, 0.0)
    one = stage_seconds(digits, even, 100)
    assert one["train@ect"] == pytest.approx(times.STAGE + TRAINING * digits.run("ect").train.total)
    assert {"reference", "edit"} | {f"{kind}@{name}" for kind in ("train", "evaluate") for name in digits.runs} == set(
        one
    )


def test_the_shape_of_the_images_suffices(digits, tmp_path):
    data = stand_in(digits, tmp_path)
    assert data is not None
    assert (data.shape, data.images.dtype) == ((1, 8, 8), np.uint8)
    assert stand_in(load_project(ROOT / "workloads/shapes-text.yaml"), tmp_path) is None


def test_prepared_images_are_measured_where_there_are_any(digits, tmp_path):
    from cmcore.data.sources.prepare import prepare

    prepare(digits.sections.data, tmp_path / "data")
    data = stand_in(digits, tmp_path / "data")
    assert data is not None
    assert len(data) == 1797


def test_an_efficiency_is_none_of_this_processor():
    with pytest.raises(ConfigError, match="--efficiency: expected a GPU, as on this CPU steps are measured, got 'cpu'"):
        plan.lines(ROOT, "digits", gpu="cpu", efficiency=0.4)
