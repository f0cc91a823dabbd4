"""One pipeline at a time: others wait, or say who works there."""

import errno
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cmcore.closure import ROOT
from cmcore.edge.ray_session import ComputeError
from cmcore.pipeline.turn import FILE, HOLDER, turn

CODE = """
import sys, time
from pathlib import Path
from cmcore.pipeline.turn import turn
with turn(Path(sys.argv[1]), "cmlab repro", wait=sys.argv[2] == "wait"):
    print("works", flush=True)
    time.sleep(float(sys.argv[3]))
"""


def start(root: Path, how: str, seconds: float, **more: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **more}
    return subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", CODE, str(root), how, str(seconds)],
        env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


@pytest.fixture
def other(tmp_path: Path):
    with start(tmp_path, "refuse", 60) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "works\n"
        yield process
        process.kill()


def test_a_second_is_refused_with_the_name_of_the_first(tmp_path: Path, other: subprocess.Popen[str]):
    said = rf"^`cmlab repro` \(process {other.pid} on .+, since 20.+\) works in {tmp_path}/\.work; wait for it"
    with pytest.raises(ComputeError, match=said), turn(tmp_path, "cmlab repro", wait=False):
        pass


def test_a_kill_ends_the_turn(tmp_path: Path, other: subprocess.Popen[str]):
    other.send_signal(signal.SIGKILL)
    other.wait()
    with turn(tmp_path, "cmlab repro", wait=False):
        assert json.loads((tmp_path / FILE).read_text())["pid"] == os.getpid()
    assert (tmp_path / FILE).read_text() == ""


def test_a_second_waits(tmp_path: Path):
    with start(tmp_path, "refuse", 1.5) as first:
        assert first.stdout is not None
        first.stdout.readline()
        with start(tmp_path, "wait", 0) as second:
            out, errors = second.communicate(timeout=60)
        assert first.wait(60) == 0
    assert (second.returncode, out) == (0, "works\n")
    assert errors.startswith(f"waiting: `cmlab repro` (process {first.pid} on ")


def test_a_child_works_in_the_turn_of_its_parent(tmp_path: Path):
    with turn(tmp_path, "cmlab repro", wait=False):
        with start(tmp_path, "refuse", 0) as child:
            assert child.communicate(timeout=60) == ("works\n", "")
        with start(tmp_path, "refuse", 0, **{HOLDER: "0"}) as stranger:
            assert "ComputeError: `cmlab repro` (process" in stranger.communicate(timeout=60)[1]
    assert HOLDER not in os.environ


def test_two_checkouts_on_one_storage_work_one_after_the_other(tmp_path: Path):
    shared = tmp_path / "shared"
    shared.mkdir()
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / ".work").symlink_to(shared)
    with start(tmp_path / "a", "refuse", 60) as process:
        assert process.stdout is not None
        process.stdout.readline()
        said = rf"^`cmlab repro` \(process {process.pid} on .+ works in {tmp_path}/b/\.work; wait for it"
        with pytest.raises(ComputeError, match=said), turn(tmp_path / "b", "cmlab repro", wait=False):
            pass
        process.kill()


def test_a_damaged_record_of_who_works_is_no_obstacle(tmp_path: Path, other: subprocess.Popen[str]):
    (tmp_path / FILE).write_text("{")
    with pytest.raises(ComputeError, match="another process works in"), turn(tmp_path, "x", wait=False):
        pass
    other.kill()
    other.wait()
    time.sleep(0.05)
    with turn(tmp_path, "x", wait=False):
        pass


@pytest.mark.parametrize("code", [errno.EROFS, errno.EACCES])
def test_a_folder_that_cannot_be_written_to_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int):
    def refuse(*_: object, **__: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(Path, "open", refuse)
    said = f"^expected a project folder to work in, but {tmp_path}/.work cannot be written to .{os.strerror(code)}."
    with pytest.raises(ComputeError, match=said), turn(tmp_path, "cmlab repro", wait=False):
        pass
