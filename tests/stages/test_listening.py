"""The MLflow that `cmlab ui` starts listens to this machine alone."""

import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from sockets import LOCAL, listening

from cmcore.closure import ROOT
from cmcore.commands import ui

pytest.importorskip("mlflow")


def project(folder: Path) -> Path:
    """A folder with nothing but the parameters."""
    for name in ("params.yaml", "dvc.yaml"):
        shutil.copy(ROOT / name, folder / name)
    return folder


def test_the_server_is_given_the_loopback_address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    started: list[list[str]] = []
    monkeypatch.setattr(os, "execve", lambda program, words, environment: started.append(words))
    ui.serve(project(tmp_path), 5000)
    (words,) = started
    assert words[words.index("--host") + 1] == "127.0.0.1"
    assert words[words.index("--port") + 1] == "5000"


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_server_listens_on_the_loopback_interface_only(tmp_path: Path):
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "cmcore.commands", "ui", "--port", str(port)]
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(command, cwd=project(tmp_path), env=environment, stdout=log, stderr=log)
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
