"""Real Ray Train, on a cluster of two nodes on this machine, with the code sent to the workers."""

import os
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import torch
from tiny_runs import tiny_folder, tiny_inputs, tiny_project
from torch.distributed.fsdp import FSDPModule

from cmcore.assemble.training import WEIGHTS
from cmcore.config import ConfigError, read
from cmcore.edge import ray_train
from cmcore.edge.ray_run import execute
from cmcore.edge.ray_session import ComputeError, WorkerDiedError, connection
from cmcore.edge.ray_train import check_capacity, execute_together
from cmcore.edge.settings import ComputeConfig
from cmcore.evaluate.settings import DecoderConfig
from cmcore.pipeline.progress import Done
from cmcore.train import checkpoint
from cmcore.train.session import CHECKPOINT, HISTORY
from stages.train_job import job

pytest.importorskip("ray.train")
# Ray's own code, which the driver runs in this process.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")
TWO = ComputeConfig(threads=1, workers=2, device="cpu")
SHARDED = replace(TWO, shard=True)


def node(**resources: float) -> dict:
    return {"Alive": True, "Resources": {"CPU": 8.0, **resources}}


@pytest.mark.parametrize(
    ("compute", "nodes", "message"),
    [
        ({"workers": 4, "threads": 3}, [node()], "compute.workers: expected at most 2"),
        ({"workers": 3, "threads": 8}, [node(), node(), {"Alive": False}], "compute.workers: expected at most 2"),
        ({"workers": 2, "device": "cuda"}, [node()], "expected a cluster with a GPU"),
        ({"workers": 3}, [node(GPU=2.0), node()], "expected at most 2, .* a GPU each"),
    ],
)
def test_a_cluster_that_is_too_small_is_refused_in_a_sentence(compute, nodes, message):
    with pytest.raises(ComputeError, match=message):
        check_capacity(ComputeConfig(**compute), nodes)


def test_gpus_are_asked_for_where_there_are_any():
    nodes = [node(GPU=1.0), node(GPU=1.0)]
    assert [check_capacity(ComputeConfig(workers=2, device=d), nodes) for d in ("auto", "cuda", "cpu")] == [1, 1, 0]


def test_one_worker_has_nobody_to_share_with():
    with pytest.raises(ConfigError, match=r"compute.shard: expected false, or workers to be at least 2, got True"):
        read(ComputeConfig, {"shard": True}, "compute")


def test_a_pytorch_that_cannot_shard_is_refused_before_anything_starts(monkeypatch, tmp_path):
    monkeypatch.delattr(FSDPModule, "reset_iter_state", raising=False)
    with pytest.raises(
        ComputeError, match=r"compute.shard: expected a PyTorch whose FSDPModule has .*, got \d"
    ) as error:
        execute_together(SHARDED, tmp_path, job, progress=lambda _: None)
    assert "\n" not in str(error.value)


def test_workers_need_ray():
    with pytest.raises(ConfigError, match=r"compute.workers: expected 1 for the backend inline, got 2"):
        read(ComputeConfig, {"backend": "inline", "workers": 2}, "compute")


@pytest.fixture(scope="module")
def cluster():
    """Two nodes of one CPU each, which do not find the project by themselves."""
    from ray.cluster_utils import Cluster

    hidden = {name: os.environ.pop(name) for name in ("PYTHONPATH",) if name in os.environ}
    nodes = Cluster(
        initialize_head=True,
        head_node_args={"num_cpus": 1, "object_store_memory": 80_000_000, "include_dashboard": False},
    )
    nodes.add_node(num_cpus=1, object_store_memory=80_000_000)
    os.environ["RAY_ADDRESS"] = nodes.address
    # One connection for all tests, as a new one would send the code again.
    with connection(TWO):
        yield nodes
    del os.environ["RAY_ADDRESS"]
    nodes.shutdown()
    os.environ |= hidden


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    return tiny_inputs(tmp_path_factory.mktemp("inputs"))


@pytest.fixture(scope="module", params=[TWO, SHARDED], ids=["whole networks", "sharded"])
def two(request):
    return request.param


@pytest.fixture(scope="module")
def trained(cluster, inputs, two, tmp_path_factory):
    """A run by two workers that nobody disturbed, and what it said."""
    del cluster
    project, said = tiny_project(), []
    folder = tiny_folder(project, "ict", inputs, tmp_path_factory.mktemp("two"))
    final = execute_together(
        two, folder, job, two, project.run("ict"), inputs, folder, DecoderConfig(), progress=said.append
    )
    return final, said


def worker_processes() -> list[psutil.Process]:
    """The training workers below this process, in the order of their start."""
    family = psutil.Process().children(recursive=True)
    workers = [process for process in family if "RayTrainWorker" in "".join(process.cmdline())]
    return sorted(workers, key=psutil.Process.create_time)


@pytest.mark.slow
@pytest.mark.timeout(600)
class TestOnTwoNodes:
    def test_the_result_is_that_of_one_worker_within_floating_point(self, trained, inputs, tmp_path):
        project, inline = tiny_project(), ComputeConfig(backend="inline", threads=1, device="cpu")
        folder = tiny_folder(project, "ict", inputs, tmp_path)
        final = execute(
            inline, job, inline, project.run("ict"), inputs, folder, DecoderConfig(), progress=lambda _: None
        )
        expected, _ = checkpoint.load(final / WEIGHTS)
        got, _ = checkpoint.load(trained[0] / WEIGHTS)
        assert sorted(got) == sorted(expected)
        for name, tensor in expected.items():
            torch.testing.assert_close(got[name], tensor, rtol=2e-3, atol=1e-5, msg=name)
        names = {path.relative_to(final) for path in final.rglob("*")}
        assert names == {path.relative_to(trained[0]) for path in trained[0].rglob("*")}
        assert not list(trained[0].parent.glob(".ray"))

    def test_the_lead_alone_speaks(self, trained):
        final, said = trained
        done = [event.done for event in said if isinstance(event, Done)]
        assert done == sorted(done)
        assert done[-1] == 4096
        logged = [event.arguments[1] for event in said if getattr(event, "method", "") == "metrics"]
        assert logged == [512 * line for line in range(1, 1 + len((final / HISTORY).read_text().splitlines()))]

    def test_a_killed_worker_costs_no_bit(self, trained, two, inputs, tmp_path):
        project = tiny_project()
        folder, killed = tiny_folder(project, "ict", inputs, tmp_path), []

        def kill(event: object) -> None:
            if not killed and isinstance(event, Done) and event.done >= 1024:
                workers = worker_processes()
                assert len(workers) == 2
                assert (folder / CHECKPOINT).exists()
                workers[0].kill()
                killed.append(event.done)

        final = execute_together(
            two, folder, job, two, project.run("ict"), inputs, folder, DecoderConfig(), progress=kill
        )
        assert killed
        for file in (WEIGHTS, HISTORY, "summary.json"):
            assert (final / file).read_bytes() == (trained[0] / file).read_bytes(), file

    def test_workers_that_die_too_often_end_in_a_line_and_the_run_goes_on_later(
        self, trained, two, inputs, tmp_path, monkeypatch
    ):
        monkeypatch.setattr(ray_train, "RESTARTS", 0)
        project = tiny_project()
        folder, begun = tiny_folder(project, "ict", inputs, tmp_path), []

        def train(progress: Callable[[object], None]) -> Path:
            known = (two, project.run("ict"), inputs, folder, DecoderConfig())
            return execute_together(two, folder, job, *known, progress=progress)

        def kill(event: object) -> None:
            if isinstance(event, Done) and event.done >= 1024:
                for process in worker_processes()[-1:]:  # there is none once its death was noticed
                    process.kill()

        with pytest.raises(WorkerDiedError, match="start again, and the run continues") as died:
            train(kill)
        assert "\n" not in str(died.value)
        final = train(lambda event: begun.append(event.done) if isinstance(event, Done) else None)
        assert begun[0] >= 512
        for file in (WEIGHTS, HISTORY, "summary.json"):
            assert (final / file).read_bytes() == (trained[0] / file).read_bytes(), file

    def test_an_error_is_raised_once_and_at_once(self, cluster, inputs, tmp_path):
        del cluster
        project = tiny_project(lr=1e30)
        folder, start = tiny_folder(project, "ict", inputs, tmp_path), time.monotonic()
        with pytest.raises(RuntimeError, match="not taken"):
            execute_together(
                TWO, folder, job, TWO, project.run("ict"), inputs, folder, DecoderConfig(), progress=lambda _: None
            )
        assert time.monotonic() - start < 60
        assert not (folder / "final").exists()
