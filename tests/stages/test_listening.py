"""The MLflow that `make ui` starts listens to this machine alone."""

import os
import re
import shlex
import shutil
import socket
import subprocess
import time

import psutil
import pytest
from sockets import LOCAL, listening

from cmcore.closure import ROOT

pytest.importorskip("mlflow")


def server_command(port: int) -> str:
    """The line with which `make ui` starts the server."""
    done = subprocess.run(["make", "-n", "ui", f"PORT={port}"], cwd=ROOT, capture_output=True, text=True, check=True)
    (command,) = re.findall(r"exec (\S+/mlflow server .*)", done.stdout.replace("\\\n", " "))
    return command


@pytest.mark.skipif(shutil.which("make") is None, reason="there is no make")
def test_make_ui_names_the_address():
    words = shlex.split(server_command(5000))
    assert words[words.index("--host") + 1] == "127.0.0.1"


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.skipif(shutil.which("make") is None, reason="there is no make")
def test_the_server_listens_on_the_loopback_interface_only(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    words = shlex.split(server_command(port).replace(str(ROOT), str(tmp_path)))
    (tmp_path / ".tracking").mkdir()
    environment = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen([str(ROOT / words[0]), *words[1:]], env=environment, stdout=log, stderr=log)
    family, there = list[psutil.Process](), set[tuple[str, int]]()
    try:
        deadline = time.monotonic() + 240
        while port not in {one for _, one in there}:
            assert process.poll() is None, (tmp_path / "log").read_text()
            assert time.monotonic() < deadline
            time.sleep(0.5)
            root = psutil.Process(process.pid)
            family = [root, *root.children(recursive=True)]
            there = listening(family)
        assert {address for address, _ in there} <= set(LOCAL)
    finally:
        for one in reversed(family):
            one.terminate()
        process.wait(30)
