"""Damage to what DVC keeps: found before anything is built on it, set aside, and made again."""

import os
import random
import shutil
import subprocess
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from benchmarks.faults import flip
from cmcore.closure import ROOT
from cmcore.errors import DataError
from cmcore.pipeline import guard
from cmcore.pipeline.guard import (
    READ,
    Checksums,
    check_inputs,
    full_disk,
    keep_lock_file,
    mend_dvc_folder,
    mend_lock_file,
    parse_lock,
    recorded,
    remove_damaged,
    watched,
)

LOCK = (ROOT / "dvc.lock").read_bytes()
CONFLICT = b"<<<<<<< HEAD\n" + LOCK[:2000] + b"=======\n" + LOCK[:3000] + b">>>>>>> theirs\n" + LOCK[3000:]


def test_a_sound_lock_file_stays(tmp_path: Path):
    (tmp_path / "dvc.lock").write_bytes(LOCK)
    assert mend_lock_file(tmp_path) == []
    assert (tmp_path / "dvc.lock").read_bytes() == LOCK
    (tmp_path / "dvc.lock").unlink()
    assert mend_lock_file(tmp_path) == []


def test_of_a_cut_lock_file_no_wrong_checksum_is_taken():
    """At 200 places, the ends of lines among them: what is taken for whole has some stages less, or results less."""
    ends, whole = [at + 1 for at, byte in enumerate(LOCK) if byte == 10], parse_lock(LOCK)
    chosen, taken = random.Random(1), 0
    for at in [0, *chosen.sample(ends, 100), *(chosen.randrange(len(LOCK)) for _ in range(100))]:
        try:
            found = parse_lock(LOCK[:at])
        except ValueError:
            continue
        taken += 1
        for name, stage in found.items():
            known = {out["path"]: out["md5"] for out in whole[name]["outs"]}
            assert {out["path"]: out["md5"] for out in stage["outs"]}.items() <= known.items()
    assert 0 < taken < 100, "only cuts between two results"


@pytest.mark.parametrize(
    "content", [b"", LOCK[:500], LOCK[: len(LOCK) // 2 + 3], CONFLICT, b"\0" * 4096, b"\xff\xfe", b"- a\n", b"{" * 9999]
)
@pytest.mark.parametrize("kept", ["remembered", "in git", "nowhere"])
def test_a_damaged_lock_file_is_set_aside(tmp_path: Path, content: bytes, kept: str):
    path = tmp_path / "dvc.lock"
    path.write_bytes(LOCK)
    if kept == "remembered":
        keep_lock_file(tmp_path)
    if kept == "in git":
        git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b"]
        for words in (["init", "-q"], ["add", "."], ["commit", "-qm", "x"]):
            subprocess.run([*git, *words], check=True)
    path.write_bytes(content)
    (line,) = mend_lock_file(tmp_path)
    assert line.startswith("dvc.lock was damaged (")
    assert "\n" not in line
    assert (tmp_path / ".work/damaged/dvc.lock").read_bytes() == content
    if kept == "nowhere":
        assert not path.exists()
    else:
        assert path.read_bytes() == LOCK
    assert mend_lock_file(tmp_path) == []


def test_a_damaged_copy_is_not_put_in_the_place(tmp_path: Path):
    (tmp_path / "dvc.lock").write_bytes(b"")
    (tmp_path / ".work").mkdir()
    (tmp_path / ".work/dvc.lock").write_bytes(LOCK[:777])
    assert "results are looked for in DVC's cache" in mend_lock_file(tmp_path)[0]
    assert not (tmp_path / "dvc.lock").exists()


@pytest.mark.parametrize(("text", "lines"), [("", 0), ("{}", 0), ('{"a": {', 1), ("[1]", 1), ("\0\0", 1)])
def test_half_of_dvcs_own_list_is_removed(tmp_path: Path, text: str, lines: int):
    assert mend_dvc_folder(tmp_path) == []
    (tmp_path / ".dvc/tmp").mkdir(parents=True)
    (tmp_path / ".dvc/tmp/rwlock").write_text(text)
    assert len(mend_dvc_folder(tmp_path)) == lines
    assert (tmp_path / ".dvc/tmp/rwlock").exists() == (lines == 0)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # from packages that DVC uses
def test_the_checksum_of_a_folder_is_that_of_dvc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    dvc = pytest.importorskip("dvc.repo")
    monkeypatch.setenv("DVC_SITE_CACHE_DIR", str(tmp_path / "site"))
    root = tmp_path / "project"
    (root / "data/deep").mkdir(parents=True)
    for name in ("b", "a", "deep/\u00fc x", "deep/.hidden"):
        (root / "data" / name).write_text(name)
    monkeypatch.chdir(root)
    with dvc.Repo.init(str(root), no_scm=True) as repo:
        (stage,) = repo.add("data")
        assert guard.md5(root / "data") == stage.outs[0].hash_info.value


def test_any_flipped_bit_is_found_though_size_and_time_stay(tmp_path: Path):
    (tmp_path / "a").mkdir()
    path, sums = tmp_path / "a/file", Checksums()
    path.write_bytes(os.urandom(999))
    wanted = {"a": guard.md5(tmp_path / "a"), "absent": "x"}
    assert sums.damaged(tmp_path, wanted) == []
    stat, data = path.stat(), bytearray(path.read_bytes())
    data[500] ^= 4
    path.write_bytes(data)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert Checksums().damaged(tmp_path, wanted) == ["a"]
    assert sums.damaged(tmp_path, wanted) == ["a"], "the time of the change of the inode is not forged"


def test_only_what_is_read_and_not_made_again_is_compared():
    stages = {
        "one": {"outs": [{"path": "out/a", "md5": "1"}, {"path": "out/b.json", "md5": "2"}]},
        "two": {"outs": [{"path": "out/c", "md5": "3"}]},
    }
    assert recorded(stages, {"out/a/deep", "out/c"}) == {"out/a": "1", "out/c": "3"}
    assert recorded(stages, {"out"}) == {"out/a": "1", "out/b.json": "2", "out/c": "3"}
    assert recorded(stages, {"out"}, {"two"}) == {"out/a": "1", "out/b.json": "2"}
    assert recorded(stages, {"out/b"}) == {}


@pytest.mark.parametrize("kind", sorted(READ))
def test_a_stage_reads_nothing_that_is_not_what_was_recorded(tmp_path: Path, kind: str):
    """Also where DVC believes it, as neither sizes nor times have changed, and another file of its kind is damaged."""
    outputs, name = tmp_path / "outputs/x", READ[kind][0]
    for place in ("data", "reference", "code"):
        (outputs / place).mkdir(parents=True)
        (outputs / place / "file").write_bytes(bytes(100))
    outs = [
        {"path": f"outputs/x/{place}", "md5": guard.md5(outputs / place)} for place in ("data", "reference", "code")
    ]
    check_inputs(tmp_path, outputs, kind)  # there is no lock file yet
    lock = {"schema": "2.0", "stages": {"one": {"cmd": "x", "outs": outs}}}
    (tmp_path / "dvc.lock").write_text(yaml.safe_dump(lock))
    (outputs / "code/file").write_bytes(bytes(99))
    check_inputs(tmp_path, outputs, kind)
    flip(outputs / name / "file", 700, hidden=True)
    with pytest.raises(DataError, match=rf"got outputs/x/{name} \(set aside as .*\); start again") as caught:
        check_inputs(tmp_path, outputs, kind)
    assert str(caught.value).isprintable()
    assert not (outputs / name).exists()
    check_inputs(tmp_path, outputs, kind)


def test_one_damaged_file_of_a_name_is_kept(tmp_path: Path):
    for content in ("first", "second"):
        (tmp_path / "x/y").mkdir(parents=True)
        (tmp_path / "x/y/file").write_text(content)
        place = guard.set_aside(tmp_path, tmp_path / "x/y")
    assert [path.read_text() for path in (tmp_path / place).iterdir()] == ["second"]
    assert not (tmp_path / "x/y").exists()
    shutil.rmtree(tmp_path / "x")


@pytest.fixture
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Looks at the disks follow one another at once."""
    monkeypatch.setattr(guard, "LOOK", 0.001)


@pytest.mark.usefixtures("hurried")
def test_a_disk_that_stays_full_ends_what_would_try_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(
        guard.shutil, "disk_usage", lambda place: SimpleNamespace(free=0 if place.name == "b" else 2**40)
    )
    said, ended = list[str](), threading.Event()
    with watched([tmp_path / "a", tmp_path / "b"], lambda line: [said.append(line), ended.set()]):
        assert ended.wait(30)
    (line,) = said
    assert line == f"the disk of {tmp_path}/b is full (0 bytes are left); free some space, and start again"


@pytest.mark.usefixtures("hurried")
def test_a_disk_that_is_full_for_a_moment_ends_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    looks = list[int]()

    def usage(place: Path) -> SimpleNamespace:
        looks.append(1)
        return SimpleNamespace(free=0 if len(looks) % guard.PATIENCE else 2**40)

    monkeypatch.setattr(guard.shutil, "disk_usage", usage)
    with watched([tmp_path], pytest.fail):
        while len(looks) < 5 * guard.PATIENCE:
            time.sleep(0.01)
    before = len(looks)
    time.sleep(0.05)
    assert len(looks) <= before + 1, "nobody looks after the end"


def test_a_disk_of_nowhere_is_not_full(tmp_path: Path):
    assert full_disk([tmp_path / "absent"]) == ""
    assert full_disk([tmp_path], room=2**62).startswith(f"the disk of {tmp_path} is full (")


def test_objects_of_a_shared_cache_may_be_removed_by_another_checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "ab").mkdir()
    (tmp_path / "ab/cd").write_text("x")

    def faster(path: Path) -> str:
        path.unlink()
        return "other"

    monkeypatch.setattr(guard, "md5", faster)
    remove_damaged(tmp_path, "abcd")
    remove_damaged(tmp_path, "absent")
    assert not (tmp_path / "ab/cd").exists()
