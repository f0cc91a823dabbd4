"""The order of parallel jobs, and that runs trained in parallel are the runs that their stages would have trained."""

import gc
import itertools
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from tiny_runs import PARAMS, tiny_inputs

from cmcore.assemble.models import save_empty
from cmcore.closure import source_digest
from cmcore.edge.ray_session import ComputeError, WorkerDiedError
from cmcore.pipeline import parallel
from cmcore.pipeline.common import Setup, load
from cmcore.pipeline.files import copy_into_place
from cmcore.pipeline.fit import Fit
from cmcore.pipeline.parallel import JobsFailedError, chains, compute_stages, run_graph
from stages import train_job
from stages.train import Inputs, train

NEEDS = {"b": ["a"], "c": ["a"], "d": ["c"]}
COSTS = {"b": 1.0, "a": 1.0, "d": 1.0, "c": 5.0, "e": 2.0}


class Recorder:
    """Work that notes who runs together and who was done when each job started."""

    def __init__(self, fails: str = "") -> None:
        self.fails, self.lock = fails, threading.Lock()
        self.started: list[str] = []
        self.done: set[str] = set()
        self.before: dict[str, set[str]] = {}
        self.running = self.most = 0

    def __call__(self, job: str) -> None:
        with self.lock:
            self.started.append(job)
            self.before[job] = set(self.done)
            self.running += 1
            self.most = max(self.most, self.running)
        time.sleep(0.002)
        with self.lock:
            self.running -= 1
            if job == self.fails:
                raise ComputeError("as the test wants it")
            self.done.add(job)


def test_the_longest_chain_goes_first():
    assert chains(COSTS, NEEDS) == {"a": 7.0, "b": 1.0, "c": 6.0, "d": 1.0, "e": 2.0}
    record = Recorder()
    run_graph(COSTS, NEEDS, 1, record)
    assert record.started == ["a", "c", "e", "b", "d"]


@given(st.integers(1, 4), st.lists(st.sets(st.integers(0, 7)), min_size=1, max_size=8))
def test_jobs_wait_for_what_they_need_and_no_more_run_than_asked_for(jobs, raw):
    needs = {str(job): [str(other) for other in before if other < job] for job, before in enumerate(raw)}
    record = Recorder()
    run_graph(dict.fromkeys(needs, 1.0), needs, jobs, record)
    assert record.done == set(needs)
    assert record.most <= jobs
    assert all(record.before[job].issuperset(needs[job]) for job in needs)


def test_a_failure_stops_only_those_that_need_it(capsys):
    record = Recorder(fails="a")
    with pytest.raises(JobsFailedError, match=r"failed: a; not started: c, b, d"):
        run_graph(COSTS, NEEDS, 2, record)
    assert record.done == {"e"}
    assert "a: as the test wants it" in capsys.readouterr().err


@pytest.mark.parametrize("jobs", [1, 2])
@pytest.mark.parametrize("error", [ValueError("a check"), OSError(28, "No space left on device"), ZeroDivisionError()])
def test_no_kind_of_failure_takes_healthy_jobs_with_it(jobs: int, error: Exception):
    done, said = list[str](), list[tuple[str, Exception]]()

    def work(job: str) -> None:
        if job == "a":
            raise error
        done.append(job)

    with pytest.raises(JobsFailedError, match=r"failed: a; not started: c, b, d"):
        run_graph(COSTS, NEEDS, jobs, work, lambda *failed: said.append(failed))
    assert (done, said) == (["e"], [("a", error)])


def test_a_signal_ends_all_jobs():
    with pytest.raises(SystemExit):
        run_graph(COSTS, NEEDS, 1, lambda _: sys.exit(143))


def test_source_code_is_digested_in_several_threads_at_once():
    """In CPython 3.11 that failed, whenever the garbage collector let another thread run in the middle of it."""
    found: list[object] = []

    def deep(depth: int) -> str:
        return deep(depth - 1) if depth else source_digest(["cmcore.methods.ict"])

    def work(depth: int) -> None:
        try:
            found.extend(deep(depth) for _ in range(5))
        except SystemError as error:
            found.append(error)

    def pause(*_: object) -> None:
        time.sleep(0)

    before = gc.get_threshold()
    gc.callbacks.append(pause)
    gc.set_threshold(200)
    try:
        threads = [threading.Thread(target=work, args=(7 * place,)) for place in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        gc.set_threshold(*before)
        gc.callbacks.remove(pause)
    assert found == [source_digest(["cmcore.methods.ict"])] * 20


def project(root: Path, **sections: object) -> Setup:
    """A project folder with prepared data."""
    root.mkdir()
    params = {**PARAMS, "compute": {"threads": 1, "device": "cpu"}, "tracking": {"mlflow": False}, **sections}
    (root / "params.yaml").write_text(yaml.safe_dump(params))
    setup = load(root)
    inputs = tiny_inputs(root)
    copy_into_place({setup.folders.data: inputs.data})
    for name in ("random", "none"):
        save_empty(setup.folders.weights(name), name)
    return setup


def files(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_inline_is_refused(tmp_path):
    with pytest.raises(ComputeError, match="expected ray for JOBS above 1, got inline"):
        compute_stages(project(tmp_path / "p", compute={"backend": "inline"}), ["train@edm"], 2, nothing)


def nothing(stage: str) -> None:
    """Records nothing."""


def stage(monkeypatch: pytest.MonkeyPatch, run: Callable[..., list[Path]]) -> None:
    """Let this function stand for the work of every stage; its result is what becomes superfluous."""
    fake = SimpleNamespace(compute=run, write=lambda setup, name, results: results[0])
    monkeypatch.setattr(parallel.plugins, "load", lambda *_: fake)
    monkeypatch.setattr(parallel, "connection", lambda _: nullcontext())
    monkeypatch.setattr(parallel, "mend_run", lambda *_: None)  # it looks at the methods of the runs


@pytest.fixture
def scarce(monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel that has killed a process for want of memory whenever it is asked."""
    count = itertools.count()
    monkeypatch.setattr(parallel, "oom_kills", lambda: next(count))


class Killed:
    """The work of a stage that is killed so many times; it notes the limits of rows that it is given."""

    def __init__(self, times: int) -> None:
        self.times, self.rows = times, list[int]()

    def __call__(self, setup: Setup, name: str, replicate: int) -> list[Path]:
        self.rows.append(setup.compute.rows)
        if len(self.rows) <= self.times:
            raise WorkerDiedError("the worker died (killed, or out of memory?): why; start again, and it continues")
        return []


@pytest.mark.usefixtures("scarce")
def test_training_that_was_killed_is_tried_once_more_with_half_of_the_rows(tmp_path, monkeypatch, capsys):
    setup, once = project(tmp_path / "p"), Killed(1)
    batch = setup.project.run("edm").train.batch
    stage(monkeypatch, once)
    compute_stages(setup, ["train@edm"], 1, nothing)
    assert once.rows == [0, batch // 2]
    assert capsys.readouterr().err == (
        "train edm: the worker died (killed, or out of memory?): why; once more from its last checkpoint, "
        f"{batch // 2} rows at once\n"
    )
    limited = Killed(1)
    stage(monkeypatch, limited)
    compute_stages(setup, ["train@edm"], 1, nothing, fit=Fit(rows={"train@edm": 8}))
    assert limited.rows == [8, 4]


@pytest.mark.usefixtures("scarce")
def test_training_that_was_killed_twice_is_not_tried_again(tmp_path, monkeypatch, capsys):
    setup, twice = project(tmp_path / "p"), Killed(9)
    stage(monkeypatch, twice)
    with pytest.raises(JobsFailedError, match="failed: train@edm"):
        compute_stages(setup, ["train@edm"], 1, nothing)
    assert len(twice.rows) == 2
    assert (
        "train edm: it was killed twice, also with 32 rows at once; expected more free memory"
        in capsys.readouterr().err
    )


@pytest.mark.parametrize(("kills", "tries"), [(7, 1), (None, 2)])
def test_training_that_somebody_has_killed_is_not_tried_with_fewer_rows(tmp_path, monkeypatch, capsys, kills, tries):
    """Its bits would be others. Where the kernel does not say why, memory may have been it."""
    setup, once = project(tmp_path / "p"), Killed(1)
    stage(monkeypatch, once)
    monkeypatch.setattr(parallel, "oom_kills", lambda: kills)
    with pytest.raises(JobsFailedError, match="failed: train@edm") if tries == 1 else nullcontext():
        compute_stages(setup, ["train@edm"], 1, nothing)
    assert len(once.rows) == tries
    assert (" why; start again, and it continues\n" in capsys.readouterr().err) == (tries == 1)


@pytest.mark.usefixtures("scarce")
@pytest.mark.parametrize(
    ("of", "name"),
    [
        ({"net": {**PARAMS["net"], "dropout": 0.1}}, "train@edm"),  # other masks
        ({"compute": {"threads": 1, "device": "cpu", "micro_batch": 16}}, "train@edm"),  # not ours to choose
        ({}, "evaluate@edm"),
    ],
)
def test_what_fewer_rows_would_change_is_not_tried_again(tmp_path, monkeypatch, of, name):
    setup, killed = project(tmp_path / "p", **of), Killed(9)
    stage(monkeypatch, killed)
    with pytest.raises(JobsFailedError, match="failed"):
        compute_stages(setup, [name], 1, nothing)
    assert len(killed.rows) == 1


def in_a_child(compute, function, *args, progress=None):
    """`execute` in a process of its own, without the time that Ray takes to start."""
    fork = multiprocessing.get_context("fork")
    receiver, sender = fork.Pipe(duplex=False)
    child = fork.Process(target=lambda: sender.send(function(*args, lambda event: None)))
    child.start()
    child.join()
    if child.exitcode == -signal.SIGKILL:
        raise WorkerDiedError("the worker died; start again, and it continues")
    return receiver.recv()


def dies_without_a_limit(compute, *args) -> Path:
    """The job of a training run, killed by SIGKILL unless the rows at once are limited."""
    if not compute.rows:
        os.kill(os.getpid(), signal.SIGKILL)
    return train_job.job(compute, *args)


@pytest.mark.usefixtures("scarce")
def test_a_process_that_is_killed_goes_on_with_fewer_rows(tmp_path, monkeypatch, capsys):
    """The result has the bits of a run with that limit from its start."""
    inline = {"backend": "inline", "threads": 1, "device": "cpu"}
    setup, single = (
        project(tmp_path / name, compute={**inline, "micro_batch": rows}) for name, rows in (("p", "auto"), ("q", 32))
    )
    monkeypatch.setattr("stages.train.execute", in_a_child)
    monkeypatch.setattr("stages.train.job", dies_without_a_limit)
    compute_stages(setup, ["train@edm"], 1, nothing)
    said = capsys.readouterr().err
    assert "train edm: the worker died; once more from its last checkpoint, 32 rows at once" in said
    compute_stages(single, ["train@edm"], 1, nothing)
    weights = [files(one.folders.runs / "edm")["weights.safetensors"] for one in (setup, single)]
    assert weights[0] == weights[1]


def test_estimates_improve_with_every_stage(tmp_path, monkeypatch):
    """Of a workload that never ran nothing is known: the first run says how long the others of its kind may take."""
    setup, said = project(tmp_path / "p"), {}

    def run(_: Setup, name: str, replicate: int) -> list[Path]:
        time.sleep(0.5)
        (setup.folders.work / "tiny" / f"{name}-0123456789abcdef").mkdir(parents=True)
        return []

    stage(monkeypatch, run)
    trained = [f"train@{name}" for name in PARAMS["runs"]]
    total = setup.project.run("edm").train.total
    assert all(setup.project.run(name).train.total == total for name in PARAMS["runs"])
    compute_stages(setup, trained, 1, nothing, said.__setitem__)
    left = list(said.values())
    assert left[0] == pytest.approx(0.5 * (len(trained) - 1), rel=0.5)
    assert left == sorted(left, reverse=True)
    assert left[-1] == 0.0


@pytest.mark.parametrize("resumed", [True, False])
def test_a_run_that_resumed_teaches_no_speed(tmp_path, monkeypatch, resumed):
    setup = project(tmp_path / "p")
    folder = setup.folders.work / "tiny/edm-0123456789abcdef"
    if resumed:
        folder.mkdir(parents=True)
    stage(monkeypatch, lambda *_: folder.mkdir(parents=True, exist_ok=True) or [])
    compute_stages(setup, ["train@edm"], 1, nothing)
    assert (setup.folders.work / "speeds.json").exists() == (not resumed)


def test_work_files_stay_until_the_results_are_recorded(tmp_path, monkeypatch):
    """Shards of an evaluation, which go on after a kill before the record."""
    setup, record = project(tmp_path / "p"), Recorder(fails="evaluate@edm")
    shards = setup.folders.work / "tiny/shards/edm"
    shards.mkdir(parents=True)
    stage(monkeypatch, lambda *_: [shards])
    with pytest.raises(JobsFailedError, match="failed: evaluate@edm"):
        compute_stages(setup, ["evaluate@edm"], 1, record)
    assert shards.exists()
    compute_stages(setup, ["evaluate@edm"], 1, nothing)
    assert not shards.exists()


def test_records_of_one_evaluation_are_safe_from_the_check_before_another(tmp_path, monkeypatch):
    """A record is written before its checksum, and the names of two runs may begin alike."""
    setup = project(tmp_path / "p", replicates=2)
    store, written = setup.folders.work / "tiny/shards/edm-0123456789abcdef", threading.Event()
    store.mkdir(parents=True)
    (store / "records-old.json").write_text("{}")

    def run(_: Setup, name: str, replicate: int) -> list[Path]:
        if replicate:  # the other job begins, and would check, meanwhile
            assert written.wait(10)
            return []
        (store / "records-new.json").write_text("{}")
        written.set()
        time.sleep(0.3)
        assert (store / "records-new.json").exists()
        return []

    stage(monkeypatch, run)
    compute_stages(setup, ["evaluate@edm"], 2, nothing)
    assert sorted(path.name for path in store.iterdir()) == ["records-new.json", "records-new.json.sha256"]


def test_one_stage_at_a_time_runs_in_the_main_thread():
    """Signals arrive there, and end what it does."""
    threads = list[threading.Thread]()
    run_graph(COSTS, NEEDS, 1, lambda _: threads.append(threading.current_thread()))
    assert set(threads) == {threading.main_thread()}


@pytest.mark.slow
def test_trained_in_parallel_or_one_by_one_the_files_are_the_same(tmp_path):
    several, single = (
        project(tmp_path / "several"),
        project(tmp_path / "single", compute={"backend": "inline", "threads": 1}),
    )
    compute_stages(several, [f"train@{name}" for name in PARAMS["runs"]], 2, nothing)
    for name, entry in PARAMS["runs"].items():
        inputs = Inputs(single.folders.data, *(single.folders.weights(entry[key]) for key in ("init", "teacher")))
        expected = train(single, single.project.run(name), inputs)
        copy_into_place({single.folders.runs / name: expected})
        # The same name holds the same fingerprint, so the stage finds the run done.
        found = several.folders.work / "tiny" / expected.parent.name / "final"
        assert files(found) == files(expected)
