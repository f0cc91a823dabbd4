"""The life of a stage process."""

import errno
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from cmcore.pipeline import process
from cmcore.pipeline.process import TRACEBACK, told
from stages.__main__ import main

ROOT = Path(__file__).parents[2]
PROGRAM = "import time; from cmcore.pipeline.process import guarded; guarded('train x', lambda: time.sleep(60))"


def test_a_stage_whose_dvc_died_while_it_was_starting_ends() -> None:
    environment = {**os.environ, "DVC_STAGE": "train@x"}  # set by DVC alone, and there is none above this process
    ended = subprocess.run([sys.executable, "-c", PROGRAM], cwd=ROOT, env=environment, timeout=30, check=False)
    assert ended.returncode == 128 + signal.SIGTERM


INTERRUPTED = """
import os, signal, time
def work(*_, **__):
    try:
        os.kill(os.getpid(), signal.{signal})
        time.sleep(30)
    except BaseException as error:
        raise {error} from error
"""
STAGE = "from cmcore.pipeline.process import guarded; guarded('train x', work)"
COMMAND = "import sys; from cmcore.commands import app; app.app = work; sys.argv[1:] = ['repro']; app.main()"


@pytest.mark.parametrize("error", ["SystemExit(0)", "SystemExit()", "SystemExit(1)", "RuntimeError('x')", "error"])
@pytest.mark.parametrize(("name", "code"), [("SIGTERM", 143), ("SIGINT", 130)])
@pytest.mark.parametrize(
    ("how", "line"), [(STAGE, "train x: stopped; start again, and it "), (COMMAND, "cmlab: stopped")]
)
def test_the_status_is_that_of_the_signal_whatever_a_library_makes_of_it(
    how: str, line: str, name: str, code: int, error: str
) -> None:
    """Ray, where a signal arrives in a call of its own, raises a SystemExit with another code."""
    program = (
        INTERRUPTED.format(signal=name, error=error) + "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
    )
    ended = subprocess.run([sys.executable, "-c", program + how], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (ended.returncode, len(ended.stderr.splitlines())) == (code, 1), ended.stderr
    assert ended.stderr.startswith(line)


@pytest.mark.parametrize(
    "arguments", [[], ["tarin"], ["train"], ["train", "ect", "edm"], ["prepare", "ect"], ["common", "x"]]
)
def test_wrong_arguments_get_the_usage(arguments) -> None:
    with pytest.raises(
        SystemExit, match=r"^usage: python -m stages \{code,prepare,reference,edit,tabulate\}, or .*tune\} NAME$"
    ):
        main(arguments)


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device", "/a/b"),
        OSError(errno.EDQUOT, "Disk quota exceeded", "/a/b"),
        sqlite3.OperationalError("database or disk is full"),
        shutil.Error([("a", "b", "[Errno 28] No space left on device")]),
        RuntimeError("I/O error: No space left on device (os error 28)"),
    ],
)
def test_an_error_of_a_full_disk_says_what_to_do(tmp_path: Path, error: Exception) -> None:
    said = told(error, tmp_path)
    assert said.isprintable()
    assert "; free some space, and start again" in said
    assert "free some space" not in told(OSError(errno.EROFS, "Read-only file system"), tmp_path)


def test_a_package_that_is_missing_is_named_with_what_to_do(tmp_path: Path) -> None:
    said = told(ModuleNotFoundError("No module named 'dvc'", name="dvc.repo"), tmp_path)
    assert said == f"dvc.repo is not installed for {sys.executable}; use make, or activate the environment first"
    own = told(ModuleNotFoundError("No module named 'cmcore.x'", name="cmcore.x"), tmp_path)  # of an edit of the code
    assert own == f"ModuleNotFoundError: No module named 'cmcore.x' (traceback: {TRACEBACK})"


def test_an_unexpected_error_is_one_line_also_where_nothing_can_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(process.tempfile, "gettempdir", lambda: str(tmp_path / "temp"))

    def failed(root: Path) -> str:
        try:
            raise ZeroDivisionError("one\ntwo")
        except ZeroDivisionError as error:
            return told(error, root)

    first = failed(tmp_path)
    assert first == f"ZeroDivisionError: one two (traceback: {TRACEBACK})"
    assert "in failed" in (tmp_path / TRACEBACK).read_text()
    (tmp_path / "file").write_text("stands for a disk that takes nothing")
    second = failed(tmp_path / "file")
    place = tmp_path / "temp" / f"cmlab-{os.getuid()}" / TRACEBACK.name
    assert second == f"ZeroDivisionError: one two (traceback: {place})"
    assert "in failed" in place.read_text()
    monkeypatch.setattr(process.tempfile, "gettempdir", lambda: str(tmp_path / "file"))
    assert failed(tmp_path / "file") == "ZeroDivisionError: one two"
    assert capsys.readouterr() == ("", "")
