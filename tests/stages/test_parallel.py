"""The order of parallel jobs, and that runs trained in parallel are the runs that their stages would have trained."""

import gc
import threading
import time
from contextlib import nullcontext
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from tiny_runs import PARAMS, tiny_inputs

from cmcore.closure import source_digest
from cmcore.edge.ray_session import ComputeError
from cmcore.pipeline import parallel
from cmcore.pipeline.common import Setup, load
from cmcore.pipeline.parallel import JobsFailedError, chains, compute_all, run_graph
from cmcore.pipeline.ready import Results, put
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
    put({setup.folders.data: inputs.data})
    setup.folders.weights("random").parent.mkdir(parents=True)
    inputs.init.rename(setup.folders.weights("random"))
    return setup


def files(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_inline_is_refused(tmp_path):
    with pytest.raises(ComputeError, match="expected ray for JOBS above 1, got inline"):
        compute_all(project(tmp_path / "p", compute={"backend": "inline"}), ["train@edm"], 2)


def test_what_is_left_is_told_by_what_was_learned_on_the_way(tmp_path, monkeypatch):
    """Of a workload that never ran nothing is known: the first run says how long the others of its kind may take."""
    setup, said = project(tmp_path / "p"), {}
    made = setup.folders.work / "tiny/made"
    made.parent.mkdir(parents=True)
    made.write_text("done")

    def do(_: Setup, stage: str, find: object) -> tuple[Results, list[Path]]:
        time.sleep(0.5)
        return {setup.folders.runs / stage: made}, []

    monkeypatch.setattr(parallel, "do", do)
    monkeypatch.setattr(parallel, "connection", lambda _: nullcontext())
    trained = [f"train@{name}" for name in PARAMS["runs"]]
    total = setup.project.run("edm").train.total
    assert all(setup.project.run(name).train.total == total for name in PARAMS["runs"])
    compute_all(setup, trained, 1, said.__setitem__)
    left = list(said.values())
    assert left[0] == pytest.approx(0.5 * (len(trained) - 1), rel=0.5)
    assert left == sorted(left, reverse=True)
    assert left[-1] == 0.0


@pytest.mark.slow
def test_trained_in_parallel_or_one_by_one_the_files_are_the_same(tmp_path):
    several, single = (
        project(tmp_path / "several"),
        project(tmp_path / "single", compute={"backend": "inline", "threads": 1}),
    )
    compute_all(several, [f"train@{name}" for name in PARAMS["runs"]], 2)
    for name, entry in PARAMS["runs"].items():
        inputs = Inputs(single.folders.data, *(single.folders.weights(entry[key]) for key in ("init", "teacher")))
        expected = train(single, single.project.run(name), inputs)
        put({single.folders.runs / name: expected})
        # The same name holds the same fingerprint, so the stage finds the run done.
        found = several.folders.work / "tiny" / expected.parent.name / "final"
        assert files(found) == files(expected)
