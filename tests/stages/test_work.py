"""Damage in the work folders: named, set aside, and made again with the same bits."""

import random
import shutil
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from tiny_runs import PARAMS, tiny_inputs

from cmcore.assemble.models import save_empty
from cmcore.assemble.summary import check_results
from cmcore.assemble.training import FINAL, Inputs, fingerprint, train_run, work_folder
from cmcore.atomic import write_atomic
from cmcore.pipeline import work
from cmcore.pipeline.common import Setup, load
from cmcore.pipeline.files import copy_into_place
from cmcore.pipeline.work import SUM, mend_run, mend_shards, seal
from cmcore.tracking.base import Null
from cmcore.train import checkpoint
from cmcore.train.session import CHECKPOINT, HISTORY
from cmcore.train.timing import TIME


class Stopped(BaseException):
    """Stands for a kill."""


@pytest.fixture(scope="module")
def ended(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project in which a run has ended, and the same run, as far as half of it, in the folder `half`."""
    root = tmp_path_factory.mktemp("ended")
    sections = {"compute": {"threads": 1, "device": "cpu", "backend": "inline"}, "tracking": {"mlflow": False}}
    (root / "params.yaml").write_text(yaml.safe_dump({**PARAMS, **sections}))
    setup = load(root)
    copy_into_place({setup.folders.data: tiny_inputs(root).data})
    for name in ("random", "none"):
        save_empty(setup.folders.weights(name), name)
    train(setup, 2048)
    shutil.copytree(folder_of(setup), root / "half")
    train(setup)
    return root


def train(setup: Setup, until: int = 0) -> None:
    """The run, which is stopped after a number of images."""

    def watch(images: int, total: int) -> None:
        if until and images > until:
            raise Stopped

    torch.set_num_threads(1)
    run, inputs = setup.project.run("edm"), inputs_of(setup)
    try:
        train_run(run, inputs, folder_of(setup), tracker=Null(), on_progress=watch)
    except Stopped:
        assert until


def inputs_of(setup: Setup) -> Inputs:
    return Inputs(setup.folders.data, setup.folders.weights("random"), setup.folders.weights("none"))


def folder_of(setup: Setup) -> Path:
    mark = fingerprint(setup.project.run("edm"), inputs_of(setup))
    return work_folder(setup.folders.work, "tiny", "edm", mark)


@pytest.fixture
def setup(ended: Path, tmp_path: Path) -> Setup:
    shutil.copytree(ended, tmp_path / "p")
    return load(tmp_path / "p")


def results(setup: Setup) -> dict[str, bytes]:
    final = folder_of(setup) / FINAL
    return {path.relative_to(final).as_posix(): path.read_bytes() for path in final.rglob("*") if path.is_file()}


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[random.Random(1).randrange(len(data) // 4, len(data))] ^= 16
    path.write_bytes(data)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


def zero(path: Path) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2] + bytes(len(data) - len(data) // 2))


HARMS = [flip, cut, zero, lambda path: path.write_bytes(b""), Path.unlink]


def test_sound_folders_stay_as_they_are(setup: Setup):
    said = list[str]()
    mend_run(setup, "edm", 0, said.append)
    shutil.rmtree(folder_of(setup))
    shutil.copytree(setup.folders.root / "half", folder_of(setup))
    mend_run(setup, "edm", 0, said.append)
    mend_shards(setup, "edm", said.append)
    assert said == []
    assert not (setup.folders.work / "damaged").exists()


@pytest.mark.parametrize("harm", HARMS)
@pytest.mark.parametrize("name", ["weights.safetensors", HISTORY, "summary.json", "snapshots/000004096.safetensors"])
def test_damaged_results_are_made_again(setup: Setup, name: str, harm: Callable[[Path], object]):
    before, said = results(setup), list[str]()
    harm(folder_of(setup) / FINAL / name)
    mend_run(setup, "edm", 0, said.append)
    assert len(said) == 1
    assert f"{FINAL}/{name}: " in said[0]
    train(setup)
    assert results(setup) == before
    check_results(folder_of(setup) / FINAL)


@pytest.mark.parametrize("harm", HARMS)
@pytest.mark.parametrize("name", [CHECKPOINT, HISTORY, "snapshots/000002048.safetensors"])
def test_damage_on_the_way_never_reaches_a_result(setup: Setup, name: str, harm: Callable[[Path], object]):
    before, said = results(setup), list[str]()
    shutil.rmtree(folder_of(setup))
    shutil.copytree(setup.folders.root / "half", folder_of(setup))
    assert checkpoint.header(folder_of(setup) / CHECKPOINT)["images"] >= 2048
    harm(folder_of(setup) / name)
    mend_run(setup, "edm", 0, said.append)
    assert len(said) <= 1  # no checkpoint, and lines after it, are as after a kill
    assert said or name == HISTORY or harm is Path.unlink
    train(setup)
    assert results(setup) == before


def test_a_damaged_time_costs_the_time_alone(setup: Setup):
    said = list[str]()
    for content in (b"", b"{}x", b"[]", b'{"seconds": "a"}', b'{"other": 1}'):
        (folder_of(setup) / TIME).write_bytes(content)
        mend_run(setup, "edm", 0, said.append)
        assert b'"seconds": 0.0' in (folder_of(setup) / TIME).read_bytes()
    assert len(said) == 5


def test_damaged_shards_are_removed_and_sound_ones_stay(setup: Setup):
    store, said = setup.folders.work / "tiny/shards/edm-0123", list[str]()
    checkpoint.save(store / "nfe_1/000000000.safetensors", {"a": torch.ones(9)}, {})
    checkpoint.save(store / "nfe_1/000000100.safetensors", {"a": torch.ones(9)}, {})
    flip(store / "nfe_1/000000100.safetensors")
    (store / "records-12.json").write_text("{}")
    seal(setup, "edm")
    (store / "records-34.json").write_text("{}")
    mend_shards(setup, "edm", said.append)
    left = sorted(path.name for path in store.rglob("*.*"))
    assert left == ["000000000.safetensors", "records-12.json", f"records-12.json{SUM}"]
    assert len(said) == 2
    (store / "records-12.json").write_text("[]")
    mend_shards(setup, "edm", said.append)
    assert not (store / "records-12.json").exists()


def test_evaluations_side_by_side_seal_all_records_once(setup: Setup, monkeypatch: pytest.MonkeyPatch):
    """Every job sees the records of the others, and a file that is written has one name in a process."""
    store, count = setup.folders.work / "tiny/shards/edm-0123", 40
    store.mkdir(parents=True)
    for number in range(count):
        (store / f"records-{number}.json").write_text(str(number))
    written, together, errors = list[str](), threading.Barrier(4), list[BaseException]()

    def write(path: Path, data: bytes) -> None:
        written.append(path.name)
        write_atomic(path, data)

    def job() -> None:
        together.wait()
        try:
            seal(setup, "edm")
        except BaseException as error:
            errors.append(error)

    monkeypatch.setattr(work, "write_atomic", write)
    jobs = [threading.Thread(target=job) for _ in range(4)]
    for one in jobs:
        one.start()
    for one in jobs:
        one.join()
    assert errors == []
    assert sorted(written) == sorted(f"records-{number}.json{SUM}" for number in range(count))
    said = list[str]()
    mend_shards(setup, "edm", said.append)
    assert said == []


def test_what_goes_meanwhile_is_no_error(setup: Setup, monkeypatch: pytest.MonkeyPatch):
    store, said = setup.folders.work / "tiny/shards/edm-0123", list[str]()
    store.mkdir(parents=True)
    (store / "records-12.json").write_text("{}")

    def digest(path: Path) -> str:
        path.unlink()
        return "another"

    (store / f"records-12.json{SUM}").write_text("one")
    monkeypatch.setattr(work, "file_digest", digest)
    mend_shards(setup, "edm", said.append)
    assert len(said) == 1
