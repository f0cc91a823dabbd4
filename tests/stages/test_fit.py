"""What does not fit this machine is known before anything is computed: memory, side by side and alone, and time."""

import json
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from tiny_runs import PARAMS

from cmcore.assemble.models import ModelShape
from cmcore.budget import need
from cmcore.budget.machines import MACHINES, Machine
from cmcore.budget.need import Need, edit_need, evaluation_need, fewer_rows, halves, needs, training_need
from cmcore.budget.plan import Costs, Setting, plan_run
from cmcore.budget.room import Room, free_memory, gpu_room, known_gpu, memory, oom_kills
from cmcore.commands import before as saying
from cmcore.commands.before import before
from cmcore.config import ConfigError
from cmcore.edge.ray_session import ComputeError
from cmcore.pipeline import fit as fitting
from cmcore.pipeline.common import Setup, load
from cmcore.pipeline.fit import KEPT, fit
from cmcore.pipeline.parallel import run_graph, stage_needs
from cmcore.pipeline.speeds import BESIDE, Speeds

GB = 1e9
MACHINE = Machine("cpu", "this machine", 16 * GB, 1e11)


def setup(root: Path, **sections: Any) -> Setup:
    """A project folder of the tiny workload, with other values in some of its sections."""
    root.mkdir(exist_ok=True)
    laid = {key: {**PARAMS[key], **value} if key in PARAMS else value for key, value in sections.items()}
    params = {**PARAMS, "compute": {"threads": 1, "device": "cpu"}, "tracking": {"mlflow": False}, **laid}
    (root / "params.yaml").write_text(yaml.safe_dump(params))
    return load(root)


def planned(monkeypatch: pytest.MonkeyPatch, free: float, found: dict[str, Need], name: str = "cpu") -> None:
    """Let the machine have so much free memory, and the stages need this."""
    monkeypatch.setattr(fitting, "room_of", lambda _: Room(replace(MACHINE, name=name), free + KEPT))
    monkeypatch.setattr(
        fitting, "needs", lambda project, stages, *_: {stage: found[stage] for stage in stages if stage in found}
    )


def of(gigabytes: float, seconds: float = 1.0) -> Need:
    """Memory in proportion to the rows, of which 64 take so much."""
    return Need({rows: gigabytes * GB * rows / 64 for rows in halves(64)}, seconds)


# The machine


def group(root: Path, path: str, limit: object, used: int, cached: int = 0, version: int = 2) -> None:
    names = ("memory.max", "memory.current", "inactive_file")
    if version == 1:
        names, path = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"), f"memory/{path}"
    folder = root / "groups" / path
    folder.mkdir(parents=True, exist_ok=True)
    for name, value in zip(names, (limit, used), strict=False):
        (folder / name).write_text(f"{value}\n")
    (folder / "memory.stat").write_text(f"anon 1\n{names[2]} {cached}\n")


@pytest.mark.parametrize(
    ("version", "own", "unlimited"), [(2, "0::/a/b\n", "max"), (1, "5:cpu:/x\n4:memory:/a/b\n0::/\n", 2**63 - 4096)]
)
def test_free_memory_is_that_of_the_narrowest_container(tmp_path: Path, version: int, own: str, unlimited: object):
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text(own)
    places = (tmp_path / "proc", tmp_path / "groups")
    host, free_on_host = memory(*places), free_memory(*places)
    assert 0 < free_on_host <= host
    group(tmp_path, "a/b", unlimited, 9_000_000, version=version)
    assert memory(*places) == host
    group(tmp_path, "a", 8_000_000, 7_000_000, 2_000_000, version=version)  # of which caches give 2 MB back
    assert (memory(*places), free_memory(*places)) == (8_000_000, 3_000_000)
    group(tmp_path, "a/b", 4_000_000, 4_500_000, version=version)
    assert (memory(*places), free_memory(*places)) == (4_000_000, 0)


def test_the_group_of_a_container_may_not_be_seen_from_inside(tmp_path: Path):
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text("0::/docker/0123\n")
    group(tmp_path, "", 5_000_000, 1_000_000)
    assert free_memory(tmp_path / "proc", tmp_path / "groups") == 4_000_000


def test_gpus_by_the_names_of_their_driver():
    names = {
        "NVIDIA H100 80GB HBM3": "h100", "NVIDIA H100 PCIe": "h100-pcie", "NVIDIA A100-SXM4-40GB": "a100-40",
        "NVIDIA A100-SXM4-80GB": "a100", "Tesla T4": "t4", "NVIDIA L4": "l4", "NVIDIA L40S": "l40s",
        "NVIDIA GeForce RTX 4090": "rtx4090", "NVIDIA H200": "h200", "Tesla V100-SXM2-32GB": "v100",
    }  # fmt: skip
    for name, key in names.items():
        assert known_gpu(name, MACHINES[key].memory) is MACHINES[key], name
    assert known_gpu("NVIDIA GeForce GTX 1080", 8 * GB) is None


@pytest.mark.parametrize(
    ("says", "name", "timed"),
    [("NVIDIA H100 80GB HBM3, 81559, 80000", "h100", True), ("GeForce GTX 1080, 8192, 8000", "gpu", False)],
)
def test_a_gpu_is_described_by_its_driver(tmp_path, monkeypatch, says: str, name: str, timed: bool):
    driver = tmp_path / "nvidia-smi"
    driver.write_text(f"#!/bin/sh\necho '{says}'\n")
    driver.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    found = gpu_room()
    assert found is not None
    total, free = (int(number) * 2**20 for number in says.split(",")[1:])
    assert (found.machine.name, found.machine.memory, found.free, found.timed) == (name, total, free, timed)
    driver.write_text("#!/bin/sh\necho 'N/A, [N/A], [N/A]'\n")
    assert gpu_room() is None


# What stages need


def test_halves():
    assert halves(64) == [64, 32, 16, 8, 4, 2, 1]
    assert halves(60, 4) == [60, 28, 12, 4]
    assert halves(4, 4) == [4]


def test_a_training_need_is_that_of_the_plan_at_every_number_of_rows(tmp_path: Path):
    project = setup(tmp_path).project
    run, setting = project.runs["ect"], Setting(MACHINE)
    costs = Costs(ModelShape(1, 8, 0))
    found = training_need(run, costs, setting)
    assert list(found.memory) == halves(64)
    for rows, needed in found.memory.items():
        whole = replace(run, train=replace(run.train, micro_batch=rows))
        assert needed == plan_run(whole, costs, setting).bytes + need.PROCESS
    assert found.most == found.memory[64]


def test_weights_that_are_read_take_no_training(tmp_path: Path):
    """Neither its memory nor its time, and how long it takes to read them says nothing of the training of others."""
    runs = PARAMS["runs"] | {"known": PARAMS["runs"]["edm"] | {"weights": {"file": "edm.pkl"}}}
    project, stages = setup(tmp_path, runs=runs).project, ["train@edm", "train@known"]
    found = needs(project, stages, MACHINE, tmp_path, tmp_path / "needs.json")
    assert found["train@known"].seconds == 0.0 < found["train@edm"].seconds
    assert found["train@known"].most < found["train@edm"].most
    speeds = Speeds(tmp_path / "speeds.json", {}, {stage: need.seconds for stage, need in found.items()})
    speeds.learn("train@known", project, 2.0)
    assert (speeds.work("train@known", project), speeds.work("train@edm", project)) == (0.0, found["train@edm"].seconds)
    speeds.learn("train@edm", project, 50.0)
    assert speeds.work("train@known", project) == 0.0


def test_the_largest_rows_that_fit():
    assert [of(8.0).most_rows(size * GB) for size in (8.0, 7.9, 1.5, 0.1)] == [64, 32, 8, 0]


def test_an_evaluation_takes_longer_with_more_samples(tmp_path: Path):
    costs, setting = Costs(ModelShape(1, 8, 0)), Setting(MACHINE)
    once, twice = (
        setup(tmp_path, eval={"samples": samples, "snapshot_samples": 500, "kid_size": 10}).project
        for samples in (5000, 10_000)
    )
    times = {
        name: [evaluation_need(project.runs[name], project, costs, setting).seconds for project in (once, twice)]
        for name in ("edm", "ect")
    }
    forward = sum(costs.of(once.runs["edm"], "forward").flops.values()) / (1e11 * need.EFFICIENCY)
    assert times["edm"][1] - times["edm"][0] == pytest.approx(5000 * 35 * forward)  # 18 steps of Heun's
    assert times["ect"][1] - times["ect"][0] == pytest.approx(5000 * 3 * forward)  # one evaluation, and two


def test_editing_takes_all_weights_at_once_and_the_time_of_its_passes(tmp_path: Path):
    project, costs, setting = setup(tmp_path).project, Costs(ModelShape(1, 8, 0)), Setting(MACHINE)
    found = edit_need(project, costs, setting)
    weights = 4 * costs.parameters(project.runs["edm"])
    assert found.most == need.PROCESS + 3 * weights + costs.of(project.runs["edm"], "forward").bytes(16)
    codec = {"kind": "kl", "factor": 2, "channels": 1}
    latent = setup(tmp_path / "latent", data={"codec": codec}).project
    assert needs(latent, ["edit"], MACHINE, tmp_path, tmp_path / "needs.json") == {}
    forward = sum(costs.of(project.runs["edm"], "forward").flops.values()) / (1e11 * need.EFFICIENCY)
    assert found.seconds == pytest.approx(3 * 2 * 16 * 50 * forward)  # runs, tasks, images, evaluations


def test_needs_are_counted_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    project, file = setup(tmp_path).project, tmp_path / "needs.json"
    stages = list(stage_needs(project))
    first = needs(project, stages, MACHINE, tmp_path, file)
    assert set(first) == {"edit", *(f"{kind}@{run}" for kind in ("train", "evaluate") for run in project.runs)}

    def never(*_: object) -> Need:
        raise AssertionError("it was counted again")

    for name in ("training_need", "evaluation_need", "edit_need"):
        monkeypatch.setattr(need, name, never)
    assert needs(project, stages, MACHINE, tmp_path, file) == first
    with pytest.raises(AssertionError):
        needs(setup(tmp_path, train={"batch": 128}).project, stages, MACHINE, tmp_path, file)
    monkeypatch.undo()
    file.write_text("{")
    assert needs(project, stages, MACHINE, tmp_path, file) == first


# What is said of memory


def test_what_fits_is_not_spoken_of(tmp_path, monkeypatch):
    planned(monkeypatch, 4 * GB, {"train@edm": of(1.0), "train@ect": of(2.0)})
    found = fit(setup(tmp_path), ["train@edm", "train@ect"], 2)
    assert (found.lines, found.room, found.memory["train@ect"]) == ((), 4 * GB, 2 * GB)


def test_the_real_machine_has_room_for_the_tiny_runs(tmp_path):
    """With the real plan and the real memory: nothing is said, and the second look is quick."""
    tiny = setup(tmp_path)
    assert fit(tiny, stage_needs(tiny.project), 1).lines == ()
    start = time.process_time()
    found = fit(tiny, stage_needs(tiny.project), 1)
    assert time.process_time() - start < 0.5
    assert need.PROCESS < found.memory["train@ect"] < need.PROCESS + 0.1 * GB


def test_two_that_do_not_fit_side_by_side(tmp_path, monkeypatch):
    planned(monkeypatch, 20 * GB, {"train@edm": of(15.0), "train@ect": of(15.0)})
    found = fit(setup(tmp_path), ["train@edm", "train@ect"], 2)
    assert found.lines == (
        "20 GB of memory are free and train@edm takes 15 GB: at most one such stage runs at a time, in place of 2",
    )
    assert fit(setup(tmp_path), ["train@edm", "train@ect"], 1).lines == ()
    assert fit(setup(tmp_path), ["train@edm"], 2).lines == ()
    planned(monkeypatch, 20 * GB, {"train@edm": of(15.0)})
    found = fit(from_seeds(setup(tmp_path), 3), ["train@edm"], 2)
    assert "at most one such stage runs" in found.lines[0]


def from_seeds(one: Setup, count: int) -> Setup:
    """The same runs from several seeds."""
    sections = replace(one.project.sections, replicates=count)
    return replace(one, project=replace(one.project, sections=sections))


@pytest.mark.parametrize(
    ("stage", "free", "path", "says"),
    [
        ("train@ect", 4.0, "runs.ect.train.micro_batch", "at most 16, as train@ect takes 15 GB of memory and 4 GB are"),
        ("evaluate@ect", 8.0, "eval.batch", "at most 32, as evaluate@ect takes 15 GB of memory and 8 GB are free"),
        ("train@ect", 0.1, "runs.ect.net", "expected a smaller network, as train@ect takes 15 GB of memory"),
        ("edit", 8.0, "runs", "expected fewer of them, or smaller networks, as edit takes 15 GB of memory"),
    ],
)  # fmt: skip
def test_one_that_does_not_fit_is_refused_with_the_remedy(tmp_path, monkeypatch, stage, free, path, says):
    planned(monkeypatch, free * GB, {stage: of(15.0), "train@edm": of(0.01)})
    tiny = setup(tmp_path, compute={"threads": 1, "device": "cpu", "micro_batch": 0})
    with pytest.raises(ConfigError) as caught:
        fit(tiny, [stage, "train@edm"], 2)
    assert caught.value.path == path
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)
    found = fit(tiny, [stage, "train@edm"], 2, refuse=False)
    assert found.lines == (str(caught.value),)
    assert found.memory[stage] > found.room


def test_fewer_rows_at_once_are_chosen_where_the_result_is_the_same(tmp_path, monkeypatch):
    planned(monkeypatch, 4 * GB, {"train@ect": of(15.0), "train@edm": of(1.0)})
    found = fit(setup(tmp_path), ["train@ect", "train@edm"], 1)
    assert found.rows == {"train@ect": 16}
    assert found.memory["train@ect"] == 15 * GB * 16 / 64
    assert found.lines == (
        "train@ect computes 16 rows at once in place of 64, as those take 15 GB of memory and 4 GB are free; its "
        "result is the same to rounding",
    )
    planned(monkeypatch, 0.1 * GB, {"train@ect": of(15.0)})
    with pytest.raises(ConfigError, match="not even one image at a time fits"):
        fit(setup(tmp_path), ["train@ect"], 1)


def test_a_limit_of_rows_is_planned_with(tmp_path, monkeypatch):
    planned(monkeypatch, 4 * GB, {"train@ect": of(15.0), "evaluate@ect": of(1.0)})
    limited = setup(tmp_path, compute={"threads": 1, "device": "cpu", "micro_batch": 8})
    found = fit(limited, ["train@ect", "evaluate@ect"], 1)
    assert (found.rows, found.lines) == ({}, ())
    assert found.memory == {"train@ect": 15 * GB * 8 / 64, "evaluate@ect": 1 * GB}


@pytest.mark.parametrize(
    ("of", "rows", "workers", "expected"),
    [({}, 0, 1, 32), ({}, 8, 1, 4), ({"micro_batch": 16}, 0, 1, 8), ({}, 0, 2, 16), ({}, 1, 1, 0)],
)
def test_fewer_rows_are_half_of_those_at_once(tmp_path, of, rows, workers, expected):
    run = setup(tmp_path).project.run("edm")
    train = replace(run.train, **{"batch": 64, "micro_batch": 0, **of})
    assert fewer_rows(replace(run, train=train), rows, workers) == expected


def test_the_remedy_says_where_rows_decide_more_than_rounding(tmp_path, monkeypatch):
    planned(monkeypatch, 4 * GB, {"train@ect": of(15.0)})
    fixed = {"threads": 1, "device": "cpu", "micro_batch": 0}
    for dropout, says, of_compute in (
        (0.0, "the same to rounding", {"compute": fixed}),
        (0.1, "dropout draws a mask for each micro-batch", {}),
    ):
        with pytest.raises(ConfigError, match=says):
            fit(setup(tmp_path, net={"dropout": dropout}, **of_compute), ["train@ect"], 2)


def test_a_cluster_is_not_measured_by_this_machine(tmp_path, monkeypatch):
    planned(monkeypatch, 0.0, {"train@ect": of(15.0)})
    monkeypatch.setenv("RAY_ADDRESS", "head:6379")
    assert fit(setup(tmp_path), ["train@ect"], 2) == fitting.Fit()


def test_workers_of_one_machine_share_its_memory(tmp_path, monkeypatch):
    planned(monkeypatch, 20 * GB, {"train@ect": of(8.0)})
    together = setup(tmp_path, compute={"threads": 1, "device": "cpu", "workers": 2})
    assert fit(together, ["train@ect"], 1).memory == {"train@ect": 16 * GB}
    planned(monkeypatch, 10 * GB, {"train@ect": of(8.0)})
    assert fit(together, ["train@ect"], 1).rows == {"train@ect": 32}


def test_a_method_that_cannot_be_planned_is_named(tmp_path, monkeypatch):
    def breaks(*_: object) -> None:
        raise ZeroDivisionError("of this method")

    monkeypatch.setattr(fitting, "needs", breaks)
    (line,) = fit(setup(tmp_path), ["train@ect"], 2).lines
    assert "ZeroDivisionError: of this method" in line


# Side by side


def test_jobs_begin_beside_others_only_where_memory_suffices():
    sizes = {"a": 6.0, "b": 6.0, "c": 3.0, "d": 3.0, "e": 30.0}
    at_once, lock, now = list[float](), threading.Lock(), set[str]()

    def work(job: str) -> None:
        with lock:
            now.add(job)
            at_once.append(sum(sizes[one] for one in now))
        time.sleep(0.01)
        with lock:
            now.remove(job)

    run_graph(dict.fromkeys(sizes, 1.0), {}, 4, work, memory=sizes, room=10.0)
    assert len(at_once) == 5, "also the one that is larger than the room"
    assert max(total for total in at_once if total < 30) == 9.0
    assert max(at_once) == 30.0, "which runs alone"


# What is said of time


@pytest.fixture
def terminal(monkeypatch):
    """Standard input and output are a terminal, on which this is answered."""

    def answer(text: str) -> None:
        monkeypatch.setattr(saying.sys, "stdin", Terminal())
        monkeypatch.setattr(saying.sys.stdout, "isatty", lambda: True, raising=False)
        monkeypatch.setattr("builtins.input", lambda _: text)

    return answer


class Terminal:
    """A terminal."""

    def isatty(self) -> bool:
        return True


DAY = 86400.0


def unknown(root: Path) -> Speeds:
    """Those of a machine of which nothing is known."""
    return Speeds(root / "speeds.json", {})


def test_work_of_more_than_a_day_is_said_first(tmp_path, monkeypatch, capsys):
    planned(monkeypatch, 20 * GB, {"train@edm": of(15.0, 10 * DAY), "train@ect": of(15.0, 30 * DAY)})
    before(setup(tmp_path), ["train@edm", "train@ect"], 1, unknown(tmp_path), yes=False)
    said = capsys.readouterr().out.splitlines()
    assert len(said) == 1
    assert said[0].startswith(
        "about 40 d of work on this machine, 30 d of it train@ect; a 1/80 of train.images takes half"
    )
    before(setup(tmp_path), ["train@edm", "train@ect"], 2, unknown(tmp_path), yes=False)
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith("about 40 d of work"), "ect waits for edm"
    assert said[1].startswith("20 GB of memory are free")


def test_work_of_less_than_a_day_is_not(tmp_path, monkeypatch, capsys, terminal):
    terminal("no")
    planned(monkeypatch, 20 * GB, {"train@edm": of(1.0, 0.9 * DAY)})
    before(setup(tmp_path), ["train@edm"], 1, unknown(tmp_path), yes=False)
    assert capsys.readouterr().out == ""


def test_what_was_measured_is_believed(tmp_path, monkeypatch, capsys):
    planned(monkeypatch, 20 * GB, {"train@edm": of(1.0, 10 * DAY)})
    tiny, speeds = setup(tmp_path), unknown(tmp_path)
    speeds.learn("train@edm", tiny.project, 60.0)
    before(tiny, ["train@edm"], 1, speeds, yes=False)
    assert capsys.readouterr().out == ""
    speeds.learn("train@edm", tiny.project, 2 * DAY)
    before(tiny, ["train@edm"], 1, speeds, yes=False)
    assert capsys.readouterr().out.startswith("about 2 d of work")


@pytest.mark.parametrize(("answer", "goes_on"), [("y", True), ("Yes ", True), ("", False), ("n", False)])
def test_a_terminal_is_asked(tmp_path, monkeypatch, terminal, answer: str, goes_on: bool):
    planned(monkeypatch, 20 * GB, {"train@edm": of(1.0, 10 * DAY)})
    terminal(answer)
    if goes_on:
        before(setup(tmp_path), ["train@edm"], 1, unknown(tmp_path), yes=False)
    else:
        with pytest.raises(ComputeError, match="nothing was started"):
            before(setup(tmp_path), ["train@edm"], 1, unknown(tmp_path), yes=False)
    before(setup(tmp_path), ["train@edm"], 1, unknown(tmp_path), yes=True)


def test_the_plan_stands_for_what_was_never_measured(tmp_path):
    project = setup(tmp_path).project
    speeds = Speeds(tmp_path / "speeds.json", {}, {"train@edm": 7.0})
    assert speeds.work("train@edm", project) == 7.0
    assert speeds.work("train@ect", project) == pytest.approx(1.5e-4 * 4096)
    speeds.learn("train@edm", project, 3.0)
    assert speeds.work("train@edm", project) == pytest.approx(3.0)
    assert json.loads((tmp_path / "speeds.json").read_text())["tiny/train/edm"] == pytest.approx(3.0 / 4096)


def test_a_plan_is_scaled_by_what_others_take_of_theirs(tmp_path):
    """As a machine that is slower than planned is slower for every method; each method has its own cost of an image."""
    project = setup(tmp_path).project
    speeds = Speeds(tmp_path / "speeds.json", {}, {"train@edm": 7.0, "train@ect": 14.0, "evaluate@ect": 2.0})
    speeds.learn("train@edm", project, 21.0)
    assert speeds.work("train@ect", project) == pytest.approx(42.0)
    assert speeds.work("evaluate@ect", project) == pytest.approx(2.0 + BESIDE["evaluate"])
    speeds.learn("train@ect", project, 20.0)
    assert (speeds.work("train@edm", project), speeds.work("train@ect", project)) == pytest.approx((21.0, 20.0))


def test_the_kernel_says_how_many_processes_it_has_killed_for_want_of_memory(tmp_path: Path):
    assert oom_kills(tmp_path) is None
    (tmp_path / "vmstat").write_text("oom_killer 3\noom_kill 12\nnr_free_pages 1\n")
    assert oom_kills(tmp_path) == 12
    (tmp_path / "vmstat").write_text("nr_free_pages 1\n")  # of an older kernel
    assert oom_kills(tmp_path) is None
