"""The MLflow that `cmlab ui` starts listens to this machine alone."""

import os
import shutil
import signal
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
from cmcore.edge.mlflow_writer import Store, TrackingError

pytest.importorskip("mlflow")


def project(folder: Path) -> Path:
    """A folder with nothing but the parameters."""
    for name in ("params.yaml", "dvc.yaml"):
        shutil.copy(ROOT / name, folder / name)
    return folder


def test_the_server_is_given_the_loopback_address(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    words = ui.command(Store("sqlite:///x.db", "x"), tmp_path, 5000)
    assert words[words.index("--host") + 1] == "127.0.0.1"
    assert words[words.index("--port") + 1] == "5000"
    monkeypatch.setattr(ui, "command", lambda *_: ["true"])
    with pytest.raises(TrackingError, match=r"at http://127\.0\.0\.1:5000 ended; where the port is taken"):
        ui.serve(project(tmp_path), 5000)
    assert capsys.readouterr().out == "MLflow, runs: http://127.0.0.1:5000\nCtrl-C ends the server\n"


PROGRAM = """
import sys
from cmcore.commands import ui
from cmcore.commands.app import main
ui.command = lambda *_: ["/bin/sh", "-c", "sleep 600 & sleep 600 & echo $$ > server; wait"]
ui.prepare_database = lambda path: None
ui.links = lambda store, address: {}
sys.argv[1:] = ["ui"]
main()
"""


@pytest.mark.parametrize(
    ("number", "to_server", "code"),
    [
        (signal.SIGTERM, False, 143), (signal.SIGHUP, False, 129), (signal.SIGINT, False, 0),
        (signal.SIGKILL, False, -9), (signal.SIGTERM, True, 1), (signal.SIGHUP, True, 1), (signal.SIGKILL, True, 1),
    ],
)  # fmt: skip
def test_a_signal_to_the_command_or_its_server_ends_all_of_them(
    tmp_path: Path, number: signal.Signals, to_server: bool, code: int
):
    def heed_signals() -> None:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)

    root = project(tmp_path)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM], cwd=root, env=environment, text=True, stderr=subprocess.PIPE,
        preexec_fn=heed_signals,
    )  # fmt: skip
    end = time.monotonic() + 60
    while not (root / "server").exists() or not (root / "server").read_text():
        assert process.poll() is None
        assert time.monotonic() < end
        time.sleep(0.05)
    server = int((root / "server").read_text())
    family = psutil.Process(process.pid).children(recursive=True)
    assert len(family) >= 3
    os.kill(server if to_server else process.pid, number)
    _, said = process.communicate(timeout=20)
    _, alive = psutil.wait_procs(family, timeout=10)
    for one in alive:
        one.kill()
    assert alive == []
    assert process.returncode == code
    assert len(said.splitlines()) == (code > 0)


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
