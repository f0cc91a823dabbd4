"""Users without an entry in the system's list, as in containers that run under any number."""

import getpass
import os
import pwd
from pathlib import Path

import pytest

from cmcore.pipeline import home
from cmcore.pipeline.home import give_home

NAMES = ("HOME", "USER", "LOGNAME", "LNAME", "USERNAME")


@pytest.fixture
def nobody(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A process whose user is unknown; changes of its environment are taken back."""

    def unknown(_: object) -> None:
        raise KeyError("uid not found")

    monkeypatch.setattr(os, "environ", os.environ.copy())
    for name in NAMES:
        os.environ.pop(name, None)
    monkeypatch.setattr(pwd, "getpwuid", unknown)
    monkeypatch.setattr(home.tempfile, "tempdir", str(tmp_path))


@pytest.mark.usefixtures("nobody")
def test_a_user_without_a_home_gets_one(tmp_path: Path):
    with pytest.raises(RuntimeError, match="home"):
        Path.home()
    give_home()
    assert Path.home() == tmp_path / f"cmlab-{os.getuid()}"
    assert Path.home().stat().st_mode & 0o777 == 0o700
    assert getpass.getuser() == f"cmlab-{os.getuid()}"
    give_home()  # of a process below it
    assert Path.home() == tmp_path / f"cmlab-{os.getuid()}"


@pytest.mark.usefixtures("nobody")
def test_it_is_not_in_a_folder_of_somebody_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "cmlab-4711").mkdir()
    monkeypatch.setattr(os, "getuid", lambda: 4711)
    give_home()
    assert Path.home().parent == tmp_path
    assert Path.home() != tmp_path / "cmlab-4711"


def test_who_has_a_home_keeps_it(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HOME", "/somewhere")
    monkeypatch.delenv("USER", raising=False)
    give_home()
    assert (os.environ["HOME"], "USER" in os.environ) == ("/somewhere", False)
