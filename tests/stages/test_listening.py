"""The MLflow that `cmlab ui` starts listens to this machine alone."""

import os
import shutil
import socket
import subprocess
import sys
import time
import webbrowser
from pathlib import Path

import psutil
import pytest
from sockets import LOCAL, listening

from cmcore.closure import ROOT
from cmcore.commands import ui
from cmcore.edge.mlflow_writer import Store

pytest.importorskip("mlflow")


def project(folder: Path) -> Path:
    """A folder with nothing but the parameters."""
    for name in ("params.yaml", "dvc.yaml"):
        shutil.copy(ROOT / name, folder / name)
    return folder


class Server:
    """A server that was started, and has ended."""

    def __init__(self, words: list[str], **_: object) -> None:
        self.words = words
        STARTED.append(self)

    def wait(self) -> int:
        return 0


STARTED: list[Server] = []


def test_the_server_is_given_the_loopback_address(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    STARTED.clear()
    monkeypatch.setattr(subprocess, "Popen", Server)
    ui.serve(project(tmp_path), 5000)
    assert capsys.readouterr().out == "MLflow, runs: http://127.0.0.1:5000\nCtrl-C ends the server\n"
    (words,) = [one.words for one in STARTED]
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


@pytest.mark.parametrize(
    ("variables", "opens"),
    [
        ({"DISPLAY": ":0"}, True),
        ({"WAYLAND_DISPLAY": "wayland-0"}, True),
        ({"DISPLAY": ":0", "SSH_CONNECTION": "10.0.0.1 1 10.0.0.2 22"}, False),
        ({}, False),
    ],
)
def test_pages_open_on_a_desktop_alone(monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], opens: bool):
    for name in ("DISPLAY", "WAYLAND_DISPLAY", "SSH_CONNECTION"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    opened: list[str] = []
    monkeypatch.setattr(webbrowser, "open", opened.append)
    ui._show(["http://m/comparison", "http://m/training"])
    assert opened == ["http://m/comparison"] * opens


def test_runs_on_a_server_elsewhere_are_linked_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://server:80/")
    seen: list[Store] = []
    monkeypatch.setattr(ui, "links", lambda store, address: seen.append(store) or {"comparison": f"{address}/#/x"})
    ui.serve(project(tmp_path), 5000)
    assert capsys.readouterr().out == "MLflow, comparison: http://server:80/#/x\n"
    assert [store.uri for store in seen] == ["http://server:80/"]
