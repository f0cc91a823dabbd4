"""Changed files at `data.path` are noticed without reading them."""

import os
from pathlib import Path

import pytest

from cmcore.data.settings import DataConfig
from cmcore.data.sources.changes import changed, remember, state


def config(place: Path, source: str = "folder") -> DataConfig:
    return DataConfig(source=source, path=str(place), resolution=8, channels=3)


@pytest.fixture
def files(tmp_path) -> Path:
    place = tmp_path / "in"
    for name in ("cat/1.png", "dog/2.png"):
        (place / name).parent.mkdir(parents=True)
        (place / name).write_bytes(b"content")
    return place


def later(path: Path) -> None:
    os.utime(path, ns=(path.stat().st_atime_ns, path.stat().st_mtime_ns + 1))


CHANGES = {
    "another size": lambda place: (place / "cat/1.png").write_bytes(b"more content"),
    "another time": lambda place: later(place / "cat/1.png"),
    "another name": lambda place: (place / "cat/1.png").rename(place / "cat/3.png"),
    "one more": lambda place: (place / "dog/3.png").write_bytes(b""),
    "one less": lambda place: (place / "dog/2.png").unlink(),
    "another folder": lambda place: (place / "dog").rename(place / "bird"),
}


@pytest.mark.parametrize("kind", CHANGES)
def test_a_change_below_a_folder_is_noticed(tmp_path, files, kind):
    record = tmp_path / "work" / "source.json"
    remember(record, config(files), state(config(files)))
    assert not changed(record, config(files))
    CHANGES[kind](files)
    assert changed(record, config(files))
    remember(record, config(files), state(config(files)))
    assert not changed(record, config(files))


def test_a_change_of_a_file_is_noticed(tmp_path):
    path, record = tmp_path / "in.zip", tmp_path / "source.json"
    path.write_bytes(b"content")
    remember(record, config(path, "archive"), state(config(path, "archive")))
    assert not changed(record, config(path, "archive"))
    later(path)
    assert changed(record, config(path, "archive"))


def test_what_is_not_known_is_no_change(tmp_path, files):
    record = tmp_path / "source.json"
    assert not changed(record, config(files))  # nothing was prepared here: DVC decides
    remember(record, config(tmp_path / "other"), "x")
    assert not changed(record, config(files))  # the parameter has changed, which DVC sees
    remember(record, config(files), "x")
    assert changed(record, config(files))
    files.rename(tmp_path / "away")
    assert not changed(record, config(files))  # results that were pulled need no source
    record.write_text("{")
    assert not changed(record, config(files))


def test_digits_have_no_place(tmp_path):
    assert state(DataConfig()) == ""
    remember(tmp_path / "source.json", DataConfig(), "")
    assert not changed(tmp_path / "source.json", DataConfig())
