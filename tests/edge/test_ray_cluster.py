"""The way to a cluster in docs/gpu-and-cluster.md, by its commands: two nodes on this machine, and a token to enter."""

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
import yaml
from pages import DOCS, commands
from sockets import open_doors
from tiny_runs import PARAMS

from cmcore.edge.ray_session import ROOT, SHARED
from cmcore.pipeline.common import Folders

pytest.importorskip("ray")
pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]
BIN = Path(sys.executable).parent
SHOWN = commands(DOCS / "gpu-and-cluster.md")
# What a test adds: this machine only looks like two nodes.
BOTH = ["--block", "--disable-usage-stats", "--object-store-memory=100000000"]
HEAD = ["--num-cpus=0"]  # without CPUs, so that the work is done by the node that joined


def shown(*beginning: str) -> list[str]:
    """The one command of the page that begins so."""
    (words,) = [words for words in SHOWN if words[: len(beginning)] == list(beginning)]
    return words


def exported() -> dict[str, str]:
    """The variables that the page says to export."""
    return dict(word.partition("=")[::2] for words in SHOWN if words[0] == "export" for word in words[1:])


@contextmanager
def running(words: list[str], environment: dict[str, str], log: Path, ready: str) -> Iterator[str]:
    """`ray start ... --block` for the time of the block, and the line in which it says that it is ready."""
    with log.open("w") as file:
        process = subprocess.Popen(words, env=environment, cwd=log.parent, stdout=file, stderr=subprocess.STDOUT)
    try:
        for _ in range(300):
            lines = [line for line in log.read_text().splitlines() if ready in line]
            if lines or process.poll() is not None:
                break
            try:
                process.wait(0.2)
            except subprocess.TimeoutExpired:
                continue
        assert process.poll() is None, log.read_text()
        assert lines, log.read_text()
        yield lines[0]
    finally:
        family = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
        process.terminate()
        process.wait(30)
        for left in psutil.wait_procs(family, timeout=10)[1]:
            left.kill()


def stage(project: Path, environment: dict[str, str], address: str) -> subprocess.CompletedProcess[str]:
    """The first stage, on the cluster."""
    command = [sys.executable, "-m", "stages", "prepare"]
    variables = {**environment, "RAY_ADDRESS": address, "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, cwd=project, env=variables, capture_output=True, text=True, check=False, timeout=120)


def test_readme_leads_to_a_cluster_that_asks_for_a_token(short_tmp, tmp_path):
    project = tmp_path / "project"
    project.mkdir()
    sections = {"compute": {"threads": 1}, "tracking": {"mlflow": False}}
    (project / "params.yaml").write_text(yaml.safe_dump({**PARAMS, **sections}))
    hidden = ("PYTHONPATH", SHARED, "RAY_AUTH_TOKEN", "RAY_AUTH_MODE")
    bare = {key: value for key, value in os.environ.items() if key not in hidden}
    bare |= {"HOME": str(short_tmp), "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}", "PYTHONSAFEPATH": "1"}
    node = bare | exported()
    subprocess.run(shown("ray", "get-auth-token"), env=node, check=True, capture_output=True, timeout=60)
    token = short_tmp / ".ray/auth_token"
    assert len(token.read_text()) >= 32

    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    head = [word.replace("6379", str(port)) for word in shown("ray", "start", "--head")]
    head += [*BOTH, *HEAD, f"--temp-dir={short_tmp / 'ray'}"]
    with running(head, node, short_tmp / "head.log", "--address=") as line:
        address = line.split("'")[1]
        assert address.endswith(f":{port}")
        (join,) = [words for words in SHOWN if words[:2] == ["ray", "start"] and "--head" not in words]
        join = [word.replace("HEAD:6379", address) for word in join] + [*BOTH, "--num-cpus=1"]
        with running(join, node, short_tmp / "join.log", "Ray runtime started"):
            assert open_doors(psutil.Process().children(recursive=True)) == []
            done = stage(project, node, address)
            assert done.returncode == 0, done.stderr
            assert done.stderr == ""
            assert (Folders(project, "tiny").data / "images.npy").exists()
            refused = stage(project, bare, address)
            assert refused.returncode == 1
            assert refused.stderr.splitlines()[-1].startswith(f"prepare: Ray at {address} (RAY_ADDRESS or ")
            assert "one token" in refused.stderr
            assert "Traceback" not in refused.stderr
