"""Results that wait for a stage are taken only where the stage would make the same ones now."""

import subprocess
import sys
from pathlib import Path

import pytest

from cmcore.closure import ROOT
from cmcore.pipeline import ready
from cmcore.pipeline.ready import Desk, content, put, take

STAGE = "train@ect"


@pytest.fixture
def root(tmp_path):
    """A project folder with an input in its place, and a result that waits."""
    for name, text in {"params.yaml": "a: 1\n", "outputs/in/x": "input", ".work/made/w": "weights"}.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


def leave(root: Path) -> Desk:
    desk = Desk(root)
    desk.leave(STAGE, {root / "outputs/run": root / ".work/made"}, [root / "outputs/in"])
    return desk


def test_what_was_left_is_taken(root):
    leave(root)
    assert take(STAGE, root)
    assert (root / "outputs/run/w").read_text() == "weights"
    assert take(STAGE, root), "as often as DVC asks"


def edit(name: str, text: str):
    return lambda root: (root / name).write_text(text)


@pytest.mark.parametrize(
    "change",
    [
        edit("params.yaml", "a: 2\n"),
        edit("outputs/in/x", "another"),
        edit("outputs/in/y", "one more"),
        lambda root: (root / "outputs/in/x").rename(root / "outputs/in/z"),
        lambda root: (root / "outputs/in/x").unlink(),
        lambda root: (root / ".work/made").rename(root / ".work/gone"),
        edit(".work/ready/train-ect.json", '{"state": '),
    ],
    ids=["parameters", "input", "another input", "renamed", "no input", "no result", "half a ticket"],
)
def test_nothing_is_taken_after_a_change(root, change):
    leave(root)
    change(root)
    assert not take(STAGE, root)
    assert not (root / "outputs/run").exists()


def test_nothing_is_taken_by_changed_code(root, monkeypatch, tmp_path_factory):
    code = tmp_path_factory.mktemp("code")
    monkeypatch.setattr(ready, "ROOT", code)
    (code / "stages").mkdir()
    (code / "stages/a.py").write_text("a = 1\n")
    leave(root)
    (code / "stages/a.pyc").write_text("compiled code is no code")
    assert take(STAGE, root)
    (code / "stages/a.py").write_text("a = 2\n")
    assert not take(STAGE, root)


def test_a_stage_for_which_nothing_waits_takes_nothing(root):
    assert not take(STAGE, root)


def test_what_changed_during_the_work_counts_as_changed(root):
    desk = Desk(root)
    (root / "params.yaml").write_text("a: 2\n")
    desk.leave(STAGE, {root / "outputs/run": root / ".work/made"}, [])
    assert not take(STAGE, root)


def test_later_work_finds_what_waits(root):
    """A student reads its teacher where that waits; the place that is declared may still hold an older one."""
    desk = leave(root)
    assert desk.find(root / "outputs/run/w") == root / ".work/made/w"
    assert desk.find(root / "outputs/in/x") == root / "outputs/in/x"
    desk.leave("train@b", {root / "outputs/b": root / ".work/made"}, [root / "outputs/run/w"])
    assert not take("train@b", root), "the teacher is not in its place yet"
    assert take(STAGE, root)
    assert take("train@b", root)
    again = Desk(root)
    assert again.waiting(STAGE)
    assert again.find(root / "outputs/run/w") == root / ".work/made/w"


def test_put_replaces_files_and_folders(tmp_path):
    for name in ("new/a", "old/a", "old/b"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    put({tmp_path / "old": tmp_path / "new", tmp_path / "deep/down/file": tmp_path / "new/a"})
    assert [path.name for path in (tmp_path / "old").iterdir()] == ["a"]
    assert (tmp_path / "deep/down/file").read_text() == (tmp_path / "old/a").read_text() == "new/a"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["deep", "new", "old"], "nothing is left beside them"


def test_content_tells_names_from_bytes(tmp_path):
    def folder(name: str, files: dict[str, str]) -> Path:
        for file, text in files.items():
            (tmp_path / name / file).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name / file).write_text(text)
        return tmp_path / name

    folders = [folder("1", {"a": "x", "b": "y"}), folder("2", {"a": "y", "b": "x"}), folder("3", {"a": "x", "c": "y"})]
    assert len({content([one]) for one in [*folders, tmp_path / "none"]}) == 4
    assert content([folders[0]]) == content([folder("4", {"b": "y", "a": "x"})])


def test_taking_needs_none_of_the_large_packages():
    """They are what a stage costs that has nothing to do."""
    heavy = ("torch", "ray", "mlflow", "dvc", "numpy", "yaml")
    code = f"import sys, stages.__main__; print([name for name in {heavy!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
