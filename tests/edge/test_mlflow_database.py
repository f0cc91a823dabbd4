"""MLflow's database after a kill in its first start, after damage, and at addresses with special characters."""

import logging
import random
import sqlite3
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path

import pytest

from cmcore.closure import ROOT
from cmcore.edge import mlflow_database
from cmcore.edge.mlflow_database import prepare_database
from cmcore.edge.mlflow_writer import RunState, Store, TrackingError
from cmcore.edge.settings import TrackingConfig

pytest.importorskip("mlflow")
TAGS = {"run": "ect", "fingerprint": "f00d"}


@pytest.fixture(autouse=True)
def fresh():
    prepare_database.cache_clear()


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch, whole: bytes):
    """Making a database takes MLflow seconds; here it is a copy of one."""
    monkeypatch.setattr(mlflow_database, "_make", lambda path: path.write_bytes(whole))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A database with a run in it."""
    prepare_database.cache_clear()
    root = tmp_path_factory.mktemp("whole")
    send(root)
    return (root / ".tracking/mlflow.db").read_bytes()


def send(root: Path, tags: Mapping[str, str] = TAGS) -> None:
    state = RunState(tags, "FINISHED")
    state.metrics({"loss": 1.0}, 5)
    (root / "file.txt").write_text("x")
    state.artifact(root / "file.txt", "records")
    state.send(Store.of(TrackingConfig(), root, "toy"))


def runs(path: Path) -> list[str]:
    with closing(sqlite3.connect(path)) as database:
        return [value for (value,) in database.execute("select value from tags where key = 'run'")]


def put(root: Path, content: bytes) -> Path:
    path = root / ".tracking/mlflow.db"
    path.parent.mkdir()
    path.write_bytes(content)
    return path


def test_a_sound_database_stays(tmp_path: Path, whole: bytes, caplog: pytest.LogCaptureFixture):
    path = put(tmp_path, whole)
    with caplog.at_level(logging.WARNING):
        prepare_database(path)
    assert (path.read_bytes() == whole, caplog.messages) == (True, [])
    assert sorted(file.name for file in path.parent.iterdir()) == ["mlflow.db"]


def unfinished(path: Path, harm: str) -> None:
    """What a kill leaves: tables without their version, or with that of a step on the way, and no experiment."""
    with closing(sqlite3.connect(path)) as database:
        if harm == "no version":
            database.execute("drop table alembic_version")
        if harm == "no row":
            database.execute("delete from alembic_version")
        if harm == "on the way":
            database.execute("update alembic_version set version_num = '181f10493468'")
            database.execute("delete from experiments")
        if harm == "few tables":
            database.execute("drop table experiments")
        database.commit()


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("harm", ["no version", "no row", "on the way", "few tables"])
def test_what_a_kill_of_the_first_start_left_is_replaced(
    tmp_path: Path, whole: bytes, harm: str, caplog: pytest.LogCaptureFixture
):
    path = put(tmp_path, whole)
    unfinished(path, harm)
    with caplog.at_level(logging.WARNING, mlflow_database.__name__):
        prepare_database(path)
    assert runs(path) == ["ect"]
    assert (path.parent / "mlflow.db.damaged").exists()
    assert [message.splitlines() for message in caplog.messages] == [[caplog.messages[0]]]
    assert caplog.messages[0].endswith("set aside as mlflow.db.damaged; `cmlab sync` fills the new one")


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("kind", ["garbage", "cut", "zeros in the middle"])
def test_a_damaged_database_is_replaced(tmp_path: Path, whole: bytes, kind: str):
    content = {
        "garbage": b"x" * 9000,
        "cut": whole[: len(whole) // 2],
        "zeros in the middle": whole[:8192] + bytes(65536) + whole[8192 + 65536 :],
    }[kind]
    path = put(tmp_path, content)
    prepare_database(path)
    assert runs(path) == ["ect"]
    assert (path.parent / "mlflow.db.damaged").read_bytes() == content


def test_an_empty_database_is_filled_in_silence(tmp_path: Path):
    path = put(tmp_path, b"")
    send(tmp_path)
    assert runs(path) == ["ect"]
    assert not (path.parent / "mlflow.db.damaged").exists()


def test_the_database_of_an_older_mlflow_stays(tmp_path: Path, whole: bytes):
    """It can be upgraded, so it is not for us to replace it."""
    path = put(tmp_path, whole)
    with closing(sqlite3.connect(path)) as database:
        database.execute("update alembic_version set version_num = '181f10493468'")
        database.commit()
    with pytest.raises(TrackingError, match="out-of-date database schema"):
        send(tmp_path)
    assert runs(path) == ["ect"]


CODE = """
import sys
sys.path[:0] = sys.argv[2:]
from pathlib import Path
from test_mlflow_database import send
send(Path(sys.argv[1]))
"""


def start(root: Path) -> subprocess.Popen[bytes]:
    """A process in the folder that sends a run to the database of it."""
    root.mkdir()
    places = [str(ROOT), str(Path(__file__).parent)]
    return subprocess.Popen([sys.executable, "-W", "ignore", "-c", CODE, str(root), *places], cwd=root)


@pytest.mark.slow
def test_a_kill_at_any_moment_of_the_first_start(tmp_path: Path):
    chosen = random.Random(1)
    for attempt in range(6):
        root = tmp_path / str(attempt)
        with start(root) as process:
            while process.poll() is None and not list(root.glob(".tracking/.mlflow.db.part*")):
                time.sleep(0.01)
            time.sleep(chosen.uniform(0, 1.5))
            process.kill()
        prepare_database.cache_clear()
        send(root)
        assert runs(root / ".tracking/mlflow.db") == ["ect"]


@pytest.mark.slow
def test_a_folder_whose_name_has_a_meaning_in_addresses(tmp_path: Path):
    root = tmp_path / "\u00fc a#b%20?c=d%"
    with start(root) as process:
        assert process.wait(120) == 0
    assert runs(root / ".tracking/mlflow.db") == ["ect"]
    assert [path.read_text() for path in (root / ".tracking/artifacts").rglob("file.txt")] == ["x"]
    assert [path.name for path in tmp_path.iterdir()] == [root.name]


@pytest.mark.parametrize(
    "uri",
    [
        "http://[::1",
        "foo://x",
        "http://",
        "sqlite:////proc/nothing/x.db",
        "postgresql://a:b@127.0.0.1:1/x",
        "http://127.0.0.1:1",
    ],
)
def test_an_address_that_leads_nowhere_is_one_line(tmp_path: Path, uri: str):
    with pytest.raises(TrackingError) as caught:
        RunState(TAGS).send(Store.of(TrackingConfig(uri=uri), tmp_path, "toy"))
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("kind", ["exclusive", "immediate"])
def test_a_locked_database_is_one_line(
    tmp_path: Path, whole: bytes, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], kind: str
):
    """Where it can be read and not written, as on a full disk, MLflow logs a traceback beside its exception."""
    path = put(tmp_path, whole)
    monkeypatch.setattr(mlflow_database, "PATIENCE", 0.1)
    with closing(sqlite3.connect(path)) as database:
        database.execute(f"begin {kind}")
        with pytest.raises(TrackingError, match="locked"):
            send(tmp_path, {**TAGS, "fingerprint": "beef"})
    assert capsys.readouterr() == ("", "")
    assert runs(path) == ["ect"]
