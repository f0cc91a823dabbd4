"""Against real Ray: one of our own for the module, and a cluster started by `ray start`."""

import os
import signal
import subprocess
import sys
import time
import traceback
from pathlib import Path

import psutil
import pytest
import ray_jobs
from sockets import open_doors

from cmcore.edge import ray_session
from cmcore.edge.ray_run import execute
from cmcore.edge.ray_session import SHARED, ComputeError, WorkerDiedError, own_ray
from cmcore.edge.settings import ComputeConfig

pytest.importorskip("ray")
INLINE = ComputeConfig(backend="inline", threads=2)
RAY = ComputeConfig(threads=2)


LATE = """
import os
from cmcore.edge.ray_session import ENVIRONMENT
os.environ |= ENVIRONMENT
import ray
try:
    ray.put(1)
except ray.exceptions.RayError as error:
    print(error)
print(ray.is_initialized())
"""


def test_no_ray_starts_by_itself_after_the_end_of_ours():
    """A thread that still waits for a job would start one, which may outlive a process that is about to end."""
    command = [sys.executable, "-W", "ignore", "-c", LATE]
    done = subprocess.run(command, cwd=ray_session.ROOT, capture_output=True, text=True, timeout=120, check=True)
    assert "has not been started" in done.stdout
    assert done.stdout.endswith("False\n")


@pytest.fixture(scope="class")
def shared():
    """One Ray for several tests, found by `execute` as the stages of a `make repro` find theirs."""
    with own_ray(RAY) as address:
        import ray

        node = ray._private.worker._global_node
        children = psutil.Process().children(recursive=True)
        # Disconnect, and leave the processes running: `execute` connects by itself.
        ray._private.worker._global_node = None
        ray.shutdown()
        os.environ[SHARED] = address
        yield children
        os.environ.pop(SHARED)
        ray.shutdown()
        node.kill_all_processes(check_alive=False, allow_graceful=False)


@pytest.mark.usefixtures("shared")
class TestOnRay:
    def test_result_and_progress_are_those_of_an_inline_run(self):
        said = {"ray": [], "inline": []}
        results = [
            execute(compute, ray_jobs.trained, 7, progress=said[compute.backend].append) for compute in (RAY, INLINE)
        ]
        assert results[0] == results[1]
        assert said["ray"] == said["inline"] == [("step", step, 2) for step in range(3)]

    def test_neither_a_dashboard_nor_a_client_server_is_open_to_others(self, shared):
        assert open_doors(shared) == []

    def test_it_runs_in_another_process(self):
        assert execute(RAY, ray_jobs.where) != os.getpid()

    @pytest.mark.parametrize("compute", [RAY, INLINE], ids=["ray", "inline"])
    def test_an_error_of_the_job_keeps_its_type_and_message(self, compute):
        with pytest.raises(KeyError, match="the original message") as caught:
            execute(compute, ray_jobs.fails, "plain")
        assert "ray_jobs.py" in "".join(traceback.format_exception(caught.value))

    def test_an_error_that_cannot_be_pickled_keeps_its_message(self):
        with pytest.raises(ComputeError, match=r"OddError: train\.lr: is too odd"):
            execute(RAY, ray_jobs.fails, "odd")

    @pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGHUP])
    def test_a_worker_that_a_signal_ends_is_reported_at_once_and_in_one_sentence(self, number):
        start = time.perf_counter()
        with pytest.raises(WorkerDiedError, match="the worker that ran dies died") as caught:
            execute(RAY, ray_jobs.dies, number)
        assert "\n" not in str(caught.value)
        assert time.perf_counter() - start < 120, "it would have slept for ten minutes"

    def test_more_threads_than_any_node_has_are_refused_at_once(self):
        with pytest.raises(ComputeError, match=r"compute.threads: expected at most the \d+ CPUs .*, got 4096"):
            execute(ComputeConfig(threads=4096), ray_jobs.where)

    def test_cuda_without_a_gpu_is_refused_at_once(self):
        import torch

        if torch.cuda.is_available():
            pytest.skip("there is a GPU")
        with pytest.raises(ComputeError, match=r"compute.device: expected a cluster with a GPU"):
            execute(ComputeConfig(device="cuda"), ray_jobs.where)


def test_an_address_where_nothing_listens_is_said_quickly(monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:9")
    start = time.perf_counter()
    with pytest.raises(ComputeError, match=r"Ray at 127.0.0.1:9 .* does not answer"):
        execute(RAY, ray_jobs.where)
    assert time.perf_counter() - start < 5


def test_an_address_of_a_client_server_is_explained():
    with pytest.raises(ComputeError, match="expected host:port of the head node"):
        execute(ComputeConfig(address="ray://head:10001"), ray_jobs.where)


DRIVER = """
import sys
from pydoc import locate
from cmcore.edge.ray_run import execute
from cmcore.edge.settings import ComputeConfig
name, *args = sys.argv[1:]
print(execute(ComputeConfig(threads=1), locate(name), *args))
"""


def driver(*args: str, cwd: Path, **environment: str) -> subprocess.Popen:
    environment["PYTHONPATH"] = os.pathsep.join([str(ray_session.ROOT), str(Path(ray_jobs.__file__).parent)])
    command, pipe = [sys.executable, "-c", DRIVER, *args], subprocess.PIPE
    return subprocess.Popen(
        command, stdout=pipe, stderr=pipe, text=True, cwd=cwd, env=os.environ | environment, preexec_fn=heeds_ctrl_c
    )


def heeds_ctrl_c() -> None:
    """What a shell starts in the background ignores Ctrl-C, with all that comes of it, as these tests may."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL], ids=["ctrl-c", "kill"])
def test_nothing_survives_a_driver_that_is_stopped(tmp_path, number):
    file = tmp_path / "pid"
    process = driver("ray_jobs.pid_then_sleeps", str(file), cwd=tmp_path)
    deadline = time.monotonic() + 90
    while not (file.exists() and file.read_text()):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.1)
    family = psutil.Process(process.pid).children(recursive=True)
    names = {child.pid: child.name() for child in family}
    assert int(file.read_text()) in names
    process.send_signal(number)
    process.communicate(timeout=30)
    # Two small helpers of Ray notice only after a minute that they are alone; nothing else may stay.
    working = [child for child in family if not (number == signal.SIGKILL and "Agent" in names[child.pid])]
    _, alive = psutil.wait_procs(working, timeout=15)
    assert alive == []


def test_a_cluster_gets_the_code_from_us(short_tmp):
    """A head node started elsewhere, whose workers cannot import the project by themselves."""
    ray_program = str(Path(sys.executable).with_name("ray"))
    environment = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", SHARED)}
    environment |= {"PYTHONSAFEPATH": "1"}
    options = ["--head", "--port=0", "--num-cpus=1", "--include-dashboard=false", "--disable-usage-stats", "--block"]
    head = subprocess.Popen(
        [ray_program, "start", *options, f"--temp-dir={short_tmp}", "--object-store-memory=100000000"],
        cwd=short_tmp, env=environment, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        address = next(line.split("'")[1] for line in head.stdout if "--address=" in line)
        process = driver("cmcore.closure.module_file", "cmcore.closure", cwd=short_tmp, RAY_ADDRESS=address)
        out, errors = process.communicate(timeout=90)
        assert process.returncode == 0, errors
        assert "runtime_resources" in out
        assert Path(out.strip()).name == "closure.py"
        assert errors == ""
    finally:
        family = psutil.Process(head.pid).children(recursive=True)
        head.terminate()
        head.wait(30)
        psutil.wait_procs(family, timeout=10)
