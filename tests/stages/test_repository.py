"""Recording results through real DVC, with the project's own dvc.yaml and files that stand for results."""

import errno
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from cmcore.closure import ROOT
from cmcore.edge.ray_session import ComputeError
from cmcore.pipeline import guard, repository
from cmcore.pipeline.common import Folders, load
from cmcore.pipeline.files import write_seeds
from cmcore.pipeline.repository import Repository
from stages import code

dvc = pytest.importorskip("dvc.repo")
dvc_stage = pytest.importorskip("dvc.stage")
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # from packages that DVC uses


@pytest.fixture
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Folders:
    """Those of a project with recorded digests of code."""
    monkeypatch.setenv("DVC_SITE_CACHE_DIR", str(tmp_path / "site"))
    root = tmp_path / "project"
    for name in ("cmcore", "stages"):
        (root / name).mkdir(parents=True)
        (root / name / "file").write_text("stands for sources")
    shutil.copy(ROOT / "dvc.yaml", root)
    shutil.copy(ROOT / "tests/e2e/tiny.yaml", root / "params.yaml")
    monkeypatch.chdir(root)
    dvc.Repo.init(str(root), no_scm=True).close()
    code.main()
    Repository(load()).record("code")
    return load().folders


def prepare(folders: Folders) -> None:
    """Files that stand for the outputs of the stage."""
    folders.data.mkdir(parents=True)
    folders.manifest.write_text("{}")
    for name in ("random", "none"):
        folders.weights(name).parent.mkdir(parents=True)
        folders.weights(name).write_text("weights")
        write_seeds(folders.seeds(name), [])


def test_recorded_results_are_up_to_date_and_come_back_from_the_cache(folders):
    found = Repository(load())
    assert found.plan("prepare") == (["prepare"], [])
    prepare(folders)
    found.record("prepare")
    assert found.plan("prepare") == ([], [])
    shutil.rmtree(folders.outputs)
    Path("dvc.lock").unlink()
    code.main()  # as it always runs before
    found.record("code")
    assert found.plan("prepare") == (["prepare"], ["prepare"])
    assert folders.weights("random").read_text() == "weights"
    assert Repository(load()).plan("prepare") == ([], []), "dvc.lock has them again"


def test_results_without_a_record_are_made_again(folders):
    """A kill between both: the stage runs again, from the files of its work folder."""
    prepare(folders)
    assert Repository(load()).plan("prepare") == (["prepare"], [])


def edit_params(folders: Folders, patch: pytest.MonkeyPatch) -> None:
    path = folders.root / "params.yaml"
    path.write_text(path.read_text().replace("seed: 1", "seed: 2"))


def edit_code(folders: Folders, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(repository, "describe_code", lambda roots, *_: {stage: {"digest": "another"} for stage in roots})


def edit_digest(folders: Folders, patch: pytest.MonkeyPatch) -> None:
    path = folders.code / "prepare.json"
    path.write_text(path.read_text().replace("stages.prepare", "stages.other"))


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (edit_params, r"^params\.yaml has changed since the start, so prepare is not recorded; start again"),
        (
            edit_code,
            r"^the code, or a file that is named, has changed since the start, so prepare is not recorded; start again",
        ),
        (edit_digest, r"prepare\.json has changed since the start, so prepare is not recorded; start again"),
    ],
)
def test_nothing_is_recorded_after_a_change(folders, monkeypatch, edit, message):
    found = Repository(load())
    prepare(folders)
    edit(folders, monkeypatch)
    for attempt in (found.record, lambda stage: found.reproduce(stage, {})):
        with pytest.raises(ComputeError, match=message):
            attempt("prepare")
    assert "prepare:" not in Path("dvc.lock").read_text()


def test_an_error_of_dvc_is_one_line(folders):
    with pytest.raises(ComputeError, match=r"^DVC: output '.*data' does not exist$"):
        Repository(load()).record("prepare")


def test_the_cause_of_a_stage_that_failed_is_in_the_line(folders, monkeypatch):
    """DVC's own error names the stage alone, whether its process failed or DVC could not write what it made."""
    found = Repository(load())
    (folders.root / "stages.py").write_text("raise SystemExit(3)\n")  # found before the project's own
    with pytest.raises(ComputeError, match=r"^DVC: failed to reproduce 'prepare': failed to run: .*, exited with \d+$"):
        found.reproduce("prepare", {})
    (folders.root / "stages.py").unlink()

    def full(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "dvc.lock")

    monkeypatch.setattr(dvc_stage.PipelineStage, "reproduce", full)
    said = (
        r"^DVC: failed to reproduce 'prepare': .*No space left on device: 'dvc.lock'; free some space, and start again$"
    )
    with pytest.raises(ComputeError, match=said):
        found.reproduce("prepare", {})


DRIVER = """
import sys
from cmcore.commands import app
from cmcore.pipeline.common import load
from cmcore.pipeline.repository import Repository
app.app = lambda *_, **__: Repository(load()).reproduce("prepare", {"PATH": sys.argv[2]})
app.main()
"""


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_signal_to_the_driver_alone_ends_it_and_the_stage_that_dvc_runs(folders, number: int, code: int):
    """DVC has a process whose main thread runs a stage ignore SIGINT, as a terminal sends it to the stage as well."""
    programs = folders.root / "programs"
    programs.mkdir()
    (programs / "python").write_text("#!/bin/sh\necho $$ > stage\nexec /bin/sleep 600\n")
    (programs / "python").chmod(0o755)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-W", "ignore", "-c", DRIVER, "repro", str(programs)]
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True, preexec_fn=heeded) as driver:
        while driver.poll() is None and not (folders.root / "stage").exists():
            time.sleep(0.05)
        time.sleep(0.2)
        stage = psutil.Process(int((folders.root / "stage").read_text()))
        driver.send_signal(number)
        try:
            _, said = driver.communicate(timeout=10)
        finally:
            alive = psutil.wait_procs([stage], timeout=2)[1]
            for process in (*alive, driver):
                process.kill()
    assert (driver.returncode, alive) == (code, [])
    assert said.splitlines()[-1] == "cmlab: stopped"


def heeded() -> None:
    """Signals as on a terminal."""
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


@pytest.mark.parametrize(
    ("then", "said"),
    [("the disk of x is full", "^the disk of x is full$"), ("", r"^DVC: disk I/O error; `cmlab doctor`")],
)
def test_an_error_on_a_disk_that_has_become_full_names_the_disk(folders, monkeypatch, then: str, said: str):
    """SQLite, whose files are mapped into memory, calls a full disk an I/O error."""
    asked = list[Path]()

    def fails(*_, **__):
        raise sqlite3.OperationalError("disk I/O error")

    found = Repository(load())
    monkeypatch.setattr(dvc, "Repo", fails)  # it opens a database of its own
    monkeypatch.setattr(repository, "full_disk", lambda places: asked.extend(places) or then)
    with pytest.raises(ComputeError, match=said), found._open():
        pass
    assert any("site" in place.parts for place in asked)


def recorded_data(folders: Folders) -> Repository:
    prepare(folders)
    found = Repository(load())
    found.record("prepare")
    return found


def test_a_damaged_result_is_set_aside_and_comes_back_from_the_cache(folders):
    found, said = recorded_data(folders), []
    folders.weights("random").write_text("wei")  # the size shows it
    assert found.plan("prepare", said.append) == (["prepare"], ["prepare"])
    assert folders.weights("random").read_text() == "weights"
    assert len(said) == 1
    assert said[0].startswith("outputs/tiny/runs/random/weights.safetensors is not what was recorded: set aside as")
    assert Repository(load()).plan("prepare") == ([], [])


def flip(path: Path) -> None:
    """Damage that neither size nor time shows."""
    before = path.stat()
    path.chmod(0o644)
    data = bytearray(path.read_bytes())
    data[0] ^= 1
    path.write_bytes(data)
    path.chmod(before.st_mode)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def test_damage_that_dvc_does_not_see_is_found_before_a_stage_reads_it(folders):
    found, said = recorded_data(folders), []
    flip(folders.manifest)
    assert found.plan("reference", said.append) == (["prepare", "reference"], ["prepare"])
    assert folders.manifest.read_text() == "{}"
    assert said[0].startswith("outputs/tiny/data is not what was recorded")


def test_what_is_damaged_in_the_cache_as_well_is_made_again(folders):
    found, said = recorded_data(folders), []
    (cached,) = (
        path for path in (folders.root / ".dvc/cache").rglob("*") if path.is_file() and path.read_bytes() == b"{}"
    )
    flip(cached)
    flip(folders.manifest)
    assert found.plan("reference", said.append) == (["prepare", "reference"], [])
    assert not cached.exists()
    assert not folders.data.exists()
    assert said[-1] == "outputs/tiny/data: damaged in DVC's cache, made again"


def test_a_damaged_list_of_a_folder_in_the_cache_is_removed(folders):
    found = recorded_data(folders)
    (listed,) = (path for path in (folders.root / ".dvc/cache").rglob("*.dir") if b"manifest" in path.read_bytes())
    flip(listed)
    shutil.rmtree(folders.data)
    assert found.plan("prepare") == (["prepare"], [])
    assert not listed.exists()


@pytest.mark.parametrize("names", [[], [".a1.tmp"], [".a1.tmp", ".b2.tmp"]])
def test_what_a_full_disk_left_half_way_in_the_cache_of_runs_stops_nothing(folders, monkeypatch, names: list[str]):
    """DVC makes a folder, writes the entry beside its place and moves it; where it finds no entry, it fails."""
    monkeypatch.setattr(guard, "YOUNG", 0.01)
    found, said = recorded_data(folders), []
    (entry,) = (
        path for path in (folders.root / ".dvc/cache/runs").glob("*/*/*") if "stages prepare" in path.read_text()
    )
    entry.unlink()
    for name in names:
        (entry.parent / name).write_text("cmd: python -m st")
    shutil.rmtree(folders.outputs)
    Path("dvc.lock").unlink()
    code.main()
    found.record("code")
    found.mend(said.append)
    assert said == [f"{entry.parent.name[:8]} in DVC's cache of runs was half-written, and removed"]
    assert found.plan("prepare") == (["prepare"], [])
    prepare(folders)
    found.record("prepare")
    assert entry.exists()
    (entry.parent / ".c3.tmp").write_text("cmd: python -m st")  # newer than the entry, and what DVC would read
    found.mend(said.append)
    assert [path.name for path in entry.parent.iterdir()] == [entry.name]


@pytest.mark.parametrize("content", ["", "schema: '2.0'\nstages:\n  prepare:\n    cmd: pyth", "<<<<<<< HEAD\n"])
@pytest.mark.parametrize("kept", [True, False])
def test_a_damaged_lock_file_does_not_stop_anything(folders, content: str, kept: bool):
    found, said = recorded_data(folders), []
    Path("dvc.lock").write_text(content)
    if not kept:
        Path(".work/dvc.lock").unlink()
    found.mend(said.append)
    assert said[0].startswith("dvc.lock was damaged")
    if not kept:  # the stage always runs before
        code.main()
        found.record("code")
    expected = ([], []) if kept else (["prepare"], ["prepare"])
    assert found.plan("prepare") == expected
    assert Repository(load()).plan("prepare") == ([], [])
