"""`cmlab doctor` finds what is broken, says how to mend it, and changes nothing."""

import fcntl
import json
import os
import shutil
import socket
import sqlite3
import subprocess
from pathlib import Path

import pytest

from cmcore.closure import ROOT
from cmcore.commands import app
from cmcore.commands.doctor import examine, machine, packages, parameters, storage
from cmcore.commands.doctor.finding import FAIL, OK, WARN
from cmcore.commands.overrides import FOLDER
from cmcore.edge.settings import ComputeConfig, TrackingConfig
from cmcore.pipeline.common import load

pytest.importorskip("dvc")
pytest.importorskip("ray")
pytest.importorskip("mlflow")

FILES = ("dvc.yaml", "pyproject.toml", "constraints.txt", ".dvc/config")
GIT = ("git", "-c", "user.name=a", "-c", "user.email=a@example.org")
LOCK = """\
schema: '2.0'
stages:
  prepare:
    cmd: python -m stages prepare
    deps:
    - path: a.json
      hash: md5
      md5: 8886b11eaae8fb1d0e818de6e3d00bec
      size: 2853
    outs:
    - path: b
      hash: md5
      md5: 8886b11eaae8fb1d0e818de6e3d00bec
      size: 2853
"""


@pytest.fixture
def project(tmp_path, monkeypatch) -> Path:
    """A healthy project of the tiny workload, under git."""
    for name in FILES:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    shutil.copy(ROOT / "tests/e2e/tiny.yaml", tmp_path / "params.yaml")
    (tmp_path / "dvc.lock").write_text(LOCK)
    for words in (["init", "-q"], ["add", "."], ["commit", "-qm", "a"]):
        subprocess.run([*GIT, "-C", str(tmp_path), *words], check=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    monkeypatch.setattr(packages, "ROOT", tmp_path)  # as if this were the checkout that the code lies in
    return tmp_path


def lines(project: Path) -> dict[str, str]:
    """The line of each part."""
    said, _ = examine(project)
    assert all("\n" not in line for line in said)
    return {line.split()[1]: line for line in said}


def everything(project: Path) -> dict[str, tuple[bytes, int]]:
    files = [path for path in project.rglob("*") if path.is_file()]
    return {str(path): (path.read_bytes(), path.stat().st_mtime_ns) for path in files}


def test_a_healthy_project_is_in_order_and_stays_as_it_is(project, capsys):
    before = everything(project)
    with pytest.raises(SystemExit) as end:
        app.main(["doctor"])
    said = capsys.readouterr().out.splitlines()
    assert end.value.code == 0, said
    assert [line.split()[1] for line in said] == [
        *("python", "code", "packages", "machine", "disk", "torch", "git", "dvc", "ray", "mlflow"),
        *("parameters", "files", "memory"),
    ]
    assert not [line for line in said if line.startswith("FAIL")]
    assert everything(project) == before


def test_a_wrong_parameter_fails_and_the_rest_is_checked_all_the_same(project, capsys):
    path = project / "params.yaml"
    path.write_text(path.read_text().replace("q: 4.0", "qq: 4.0"))
    with pytest.raises(SystemExit) as end:
        app.main(["doctor"])
    said = {line.split()[1]: line for line in capsys.readouterr().out.splitlines()}
    assert end.value.code == 1
    assert said["parameters"].startswith(
        "FAIL  parameters  params.yaml: runs.ect.options.qq: unknown key; did you mean 'q'?"
    )
    assert "`cmlab use WORKLOAD`" in said["parameters"]
    assert said["ray"].startswith("ok")


def test_no_git(project):
    shutil.rmtree(project / ".git")
    found = storage.check_git(project)
    assert (found.state, found.text.partition(":")[0]) == (WARN, "this is no git repository")
    subprocess.run([*GIT, "-C", str(project), "init", "-q"], check=True)
    assert storage.check_git(project).state == WARN
    assert lines(project)["git"].endswith("a repository without a commit; git add . && git commit")


def test_a_machine_without_git(project, monkeypatch):
    monkeypatch.setenv("PATH", str(project))
    assert storage.check_git(project).text.startswith("there is no git: cmlab works without")


@pytest.mark.parametrize(
    "last", ["schema: '2", "prepare:", "prepare:\n    cm", "- path: a.json", "  hash: md5", "md5: 8886b"]
)
def test_a_cut_lock_file_fails(project, last):
    (project / "dvc.lock").write_text(LOCK[: LOCK.index(last) + len(last)])
    found = storage.check_dvc(project)
    assert found.state == FAIL
    assert found.text.startswith("dvc.lock is damaged (")
    assert found.remedy == "`cmlab repro` sets it aside and goes on from the last sound one"


@pytest.mark.parametrize("text", ["", "schema: '2.0'\n", "[1, 2]\n", "stages: {}\n", "<<<<<<< HEAD\n" + LOCK, "\0"])
def test_a_garbled_lock_file_fails(project, text):
    (project / "dvc.lock").write_text(text)
    assert storage.check_dvc(project).state == FAIL


def test_the_projects_own_lock_file_is_whole():
    assert storage.locked_stages(ROOT / "dvc.lock") > 10


def test_without_a_lock_file_nothing_was_computed(project):
    (project / "dvc.lock").unlink()
    found = storage.check_dvc(project)
    assert (found.state, found.text.partition(",")[0]) == (OK, "no dvc.lock: nothing was computed yet")


def test_dvc_was_not_initialised(project):
    (project / ".dvc/config").unlink()
    assert storage.check_dvc(project).text == "there is no .dvc/config"


def test_a_held_lock_is_a_warning_that_goes_away(project):
    tmp = project / ".dvc/tmp"
    tmp.mkdir()
    with (tmp / "lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        found = storage.check_dvc(project)
        assert (found.state, found.text) == (WARN, "in use by a DVC command")
    assert storage.check_dvc(project).state == OK
    entry = {"write": {"pid": os.getpid(), "cmd": "dvc repro"}, "read": []}
    (tmp / "rwlock").write_text(json.dumps({"a": entry}))
    assert storage.check_dvc(project).text == f"in use by dvc repro (process {os.getpid()})"
    (tmp / "rwlock").write_text(json.dumps({"a": {**entry, "write": {"pid": 2**22 + 1, "cmd": "dvc repro"}}}))
    assert storage.check_dvc(project).state == OK
    (tmp / "rwlock").write_text("{")
    assert storage.check_dvc(project).state == FAIL


@pytest.mark.skipif(os.geteuid() == 0, reason="nothing is read-only for root")
def test_a_cache_that_cannot_be_written_to(project):
    cache = project / "cache"
    cache.mkdir(mode=0o500)
    (project / ".dvc/config.local").write_text("[cache]\n    dir = ../cache\n")
    assert storage.check_dvc(project).state == FAIL


def test_the_cache_may_lie_elsewhere(project):
    (project / ".dvc/config.local").write_text("[cache]\n    dir = ../elsewhere\n")
    assert storage.check_dvc(project).text.endswith(f"cache {project / 'elsewhere'}")


def database(project: Path) -> Path:
    (project / ".tracking").mkdir(exist_ok=True)
    return project / ".tracking/mlflow.db"


def state_of_mlflow(project: Path) -> str:
    return storage.check_mlflow(TrackingConfig(), project, "tiny").state


def test_a_garbage_database_fails(project):
    database(project).write_bytes(b"no database at all" * 100)
    line = lines(project)["mlflow"]
    assert line.startswith("FAIL")
    assert "file is not a database" in line
    assert "`cmlab sync` fills a new one" in line


def test_a_database_of_another_schema_fails(project):
    path = database(project)
    assert state_of_mlflow(project) == OK, "there is none yet"
    path.touch()
    assert state_of_mlflow(project) == OK, "an empty one is filled"
    with sqlite3.connect(path) as connection:
        connection.execute("create table birds (name text)")
    assert state_of_mlflow(project) == FAIL
    with sqlite3.connect(path) as connection:
        connection.execute("create table alembic_version (version_num text)")
        connection.execute("insert into alembic_version values ('451aebb31d03')")
    found = storage.check_mlflow(TrackingConfig(), project, "tiny")
    assert (found.state, "mlflow db upgrade" in found.remedy) == (FAIL, True)
    with sqlite3.connect(path) as connection:
        connection.execute("update alembic_version set version_num = ?", [storage.head_revision()])
    connection.close()
    assert state_of_mlflow(project) == OK


@pytest.mark.slow
def test_the_expected_schema_is_the_one_that_mlflow_makes(project):
    code = "import sys; from mlflow import MlflowClient; MlflowClient(sys.argv[1]).search_experiments()"
    subprocess.run([packages.sys.executable, "-c", code, f"sqlite:///{database(project)}"], check=True)
    assert storage.schema(database(project)) == storage.head_revision()


def test_a_server_that_does_not_answer_is_a_warning(project):
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        uri = f"http://127.0.0.1:{listening.getsockname()[1]}"
        assert storage.check_mlflow(TrackingConfig(uri=uri), project, "tiny").state == WARN
        listening.listen()
        assert storage.check_mlflow(TrackingConfig(uri=uri), project, "tiny").state == OK


def test_a_missing_package_fails(project):
    path = project / "pyproject.toml"
    path.write_text(path.read_text().replace('"dvc>=3.60,<4"', '"no-such-package>=1", "dvc>=3.60,<4"'))
    found = packages.check_packages(project)
    assert (found.state, found.text) == (FAIL, "missing: no-such-package")
    assert "pip install" in found.remedy


def test_another_version_than_pinned_is_a_warning(project):
    path = project / "constraints.txt"
    there = packages.version("numpy")
    path.write_text(path.read_text().replace(f"numpy=={there}", "numpy==2.0.0"))
    found = packages.check_packages(project)
    assert (found.state, found.text) == (WARN, f"other versions than pinned: numpy {there} (pinned 2.0.0)")


def test_a_package_that_cannot_be_imported_is_one_line(project, monkeypatch):
    def absent(root: Path) -> None:
        raise ModuleNotFoundError("No module named 'ruamel'")

    monkeypatch.setattr("cmcore.pipeline.common.load", absent)
    said, healthy = examine(project)
    assert not healthy
    assert said[-1].startswith("FAIL  packages    No module named 'ruamel'; pip install")


def test_the_code_of_another_checkout_fails(project, monkeypatch):
    monkeypatch.setattr(packages, "ROOT", ROOT)
    assert packages.check_code(project).state == FAIL


def test_a_gpu_that_is_asked_for_and_absent(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert machine.check_torch(ComputeConfig(device="cuda")).state == FAIL


@pytest.mark.parametrize(("free", "state"), [(0.5e9, FAIL), (5e9, WARN), (50e9, OK)])
def test_a_full_disk(project, monkeypatch, free, state):
    monkeypatch.setattr(machine.shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(1e12, 1e12 - free, free))
    assert machine.check_disk(project).state == state


def test_ray_says_which_cluster_it_would_join(monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "head:6379")
    assert "RAY_ADDRESS = head:6379 (not asked)" in storage.check_ray(ComputeConfig()).text
    assert storage.check_ray(ComputeConfig(backend="inline")).text == "not used: compute.backend = inline"


def test_data_that_are_not_there_fail_until_they_are_prepared(project):
    path = project / "params.yaml"
    data = "source: array\n  path: images.npy"
    path.write_text(path.read_text().replace("source: digits", data))
    setup = load(project)
    assert parameters.check_files(setup, project).text == "data.path: there is no images.npy"
    setup.folders.manifest.parent.mkdir(parents=True)
    setup.folders.manifest.write_text("{}")
    assert parameters.check_files(setup, project).state == OK


def test_a_network_that_does_not_fit_fails_and_warns_before_a_cluster(project, monkeypatch):
    monkeypatch.setattr(parameters, "memory", lambda: 1e5)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    found = parameters.check_memory(load(project))
    assert (found.state, found.text) == (FAIL, "edm, ect do not fit into 100 kB")
    monkeypatch.setenv("RAY_ADDRESS", "head:6379")
    assert parameters.check_memory(load(project)).state == WARN


def test_a_killed_override_is_a_warning(project):
    (project / FOLDER).mkdir(parents=True)
    for name in ("original.yaml", "overridden.yaml"):
        (project / FOLDER / name).write_bytes((project / "params.yaml").read_bytes())
    assert parameters.check_parameters(load(project), project).state == WARN
