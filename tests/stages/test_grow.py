"""A longer run goes on from a shorter one with the bits of one that starts anew, or it is said why it does not."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import photographs
import pytest
import yaml
from every_run import every_run, make_inputs
from tiny import METHODS
from tiny_runs import tiny_inputs, tiny_project

import stages.prepare
import stages.train
from cmcore.assemble.project import Run
from cmcore.assemble.training import FINAL, Inputs, fingerprint, train_run
from cmcore.budget.passes import spans
from cmcore.closure import ROOT
from cmcore.commands.repro import Driver
from cmcore.config import load_yaml
from cmcore.data.sources.prepare import prepare
from cmcore.pipeline.common import Folders, load
from cmcore.pipeline.files import copy_into_place
from cmcore.pipeline.grow import begin, keep, longer, shorter
from cmcore.pipeline.tidy import tidy
from cmcore.tracking.base import Null
from cmcore.train import steps
from cmcore.train.session import CHECKPOINT
from cmcore.train.settings import PlayerConfig

PLANNED = {"ct", "ect", "ict", "pd", "soflow"}  # methods whose curriculum is one of the whole run


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Inputs]:
    return make_inputs(tmp_path_factory.mktemp("inputs"))


def train(run: Run, use: Inputs, folder: Path) -> Path:
    return train_run(run, use, folder, tracker=Null(), on_progress=lambda *_: None)


def folder_of(root: Path, run: Run, use: Inputs) -> Path:
    return root / f"{run.name}-{fingerprint(run, use)}"


def finished(root: Path, run: Run, use: Inputs) -> Path:
    """The work folder of a run as the stage leaves it."""
    folder = folder_of(root, run, use)
    train(run, use, folder)
    keep(folder, run, use)
    tidy(folder)
    return folder


def results(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("name", METHODS)
def test_a_longer_run_has_the_bits_of_one_from_the_start(
    name: str, inputs: dict[str, Inputs], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Of every method, and only the steps beyond the shorter run are computed. Where the curriculum is planned over the
    whole run, a longer one is another run from its beginning."""
    short, long = (every_run(images=images, snapshots=count).run(name) for images, count in ((256, 2), (512, 4)))
    use, seen = inputs[name], list[int]()
    folder = finished(tmp_path / "work", short, use)
    assert bool(spans(long)) == (name in PLANNED)
    assert (folder / CHECKPOINT).exists() != (name in PLANNED)
    whole, grown = tmp_path / "whole", folder_of(tmp_path / "work", long, use)
    expected = results(train(long, use, whole))
    assert begin(grown, long, use) == (0 if name in PLANNED else 256)
    step = steps._Loop.step
    monkeypatch.setattr(steps._Loop, "step", lambda loop: seen.append(loop.state.images) or step(loop))
    assert results(train(long, use, grown)) == expected
    assert seen[0] == (0 if name in PLANNED else 256)


def test_what_is_planned_over_the_whole_run_differs_before_the_end_of_the_shorter_one(inputs, tmp_path):
    """Else the list above would be too long."""
    alike = set[str]()
    for name in sorted(PLANNED):
        short, long = (every_run(images=images).run(name) for images in (1024, 2048))
        ends = [train(run, inputs[name], tmp_path / f"{name}{run.train.images}") for run in (short, long)]
        losses = [(end / "history.jsonl").read_text().splitlines()[:8] for end in ends]
        if losses[0] == losses[1]:
            alike.add(name)
    assert not alike


@pytest.mark.parametrize(
    ("of", "says"),
    [
        ({}, ""),
        ({"lr_decay": "inverse_sqrt", "lr_ref_images": 100}, ""),
        ({"lr_decay": "linear", "lr_ref_images": 100}, "train.lr_decay is linear"),
    ],
)
def test_schedules_that_end_with_the_run(of: dict[str, Any], says: str):
    run = tiny_project(**of).run("edm")
    assert spans(run).startswith(says)
    assert bool(spans(run)) == bool(says)
    assert spans(tiny_project().run("ect")) == "ect plans its curriculum over the whole run"


def test_a_schedule_of_another_player_counts(inputs):
    run = every_run().run("dmd2")
    assert not spans(run)
    player = {name: PlayerConfig(lr_decay="linear", lr_ref_images=1) for name in run.objective.players[1:]}
    assert "linear" in spans(replace(run, train=replace(run.train, players=player)))


@pytest.fixture
def edm(tmp_path: Path) -> tuple[Path, Inputs]:
    """The work folder of a finished run of 1,024 images with two snapshots."""
    use = tiny_inputs(tmp_path)
    return finished(tmp_path / "work", tiny_project(images=1024).run("edm"), use), use


@pytest.mark.parametrize(
    "of",
    [
        {"images": 512},  # shorter
        {"images": 2048, "snapshots": 3},  # after 682 images
        {"images": 2048, "lr": 2e-3},
        {"images": 2048, "lr_decay": "linear"},
    ],
)
def test_what_is_another_run_starts_anew(edm, of):
    folder, use = edm
    run = tiny_project(**of).run("edm")
    assert begin(folder_of(folder.parent, run, use), run, use) == 0


def test_the_longest_is_taken_and_damaged_ones_are_not(edm):
    folder, use = edm
    middle, run = (tiny_project(images=images, snapshots=n).run("edm") for images, n in ((2048, 4), (4096, 8)))
    begin(folder_of(folder.parent, middle, use), middle, use)
    second = finished(folder.parent, middle, use)
    assert shorter(folder_of(folder.parent, run, use), run, use) == second
    (second / CHECKPOINT).write_bytes(b"broken")
    assert shorter(folder_of(folder.parent, run, use), run, use) == folder
    shutil.rmtree(folder / FINAL)
    assert shorter(folder_of(folder.parent, run, use), run, use) is None


def test_a_run_that_ended_between_two_lines_of_the_history(tmp_path):
    """The next line would be a mean over other steps."""
    use = tiny_inputs(tmp_path)
    finished(tmp_path / "work", tiny_project(images=1088, snapshots=0).run("edm"), use)
    run = tiny_project(images=2048, snapshots=0).run("edm")
    assert begin(folder_of(tmp_path / "work", run, use), run, use) == 0


def test_what_is_done_about_another_number_of_images_is_said(edm, tmp_path):
    folder, use = edm
    folders = Folders(tmp_path, "tiny")
    shutil.copytree(use.data, folders.data)
    for name in ("random", "none"):
        folders.weights(name).parent.mkdir(parents=True)
        shutil.copy(use.init, folders.weights(name))
    inputs = Inputs(folders.data, folders.weights("random"), folders.weights("none"))
    folder = finished(folders.work / "tiny", tiny_project(images=1024).run("edm"), inputs)
    copy_into_place({folders.run("edm"): folder / FINAL})

    def said(**of: Any) -> str:
        lines = longer(tiny_project(**of), folders)
        assert len(lines) <= 1
        return "".join(lines)

    assert said(images=1024) == ""
    assert said(images=2048).replace("\u202f", ",") == ("edm: 2,048 images in place of 1,024, going on from 1,024")
    assert said(images=2048, lr_decay="linear").endswith("from the start, as train.lr_decay is linear, to its end")
    assert said(images=512).endswith("1\u202f024, from the start")
    assert "its snapshot after 704 images is not there; see train.snapshots" in said(images=2048, snapshots=3)
    (folder / CHECKPOINT).unlink()
    assert said(images=2048).endswith("from the start, as no checkpoint of the shorter run is there")
    shutil.copytree(folders.run("edm"), folders.run("ect"))
    lines = longer(tiny_project(images=2048), folders)
    assert [line.partition(":")[0] for line in lines] == ["edm", "ect"]
    assert lines[1].endswith("from the start, as edm changes")
    (folders.run("edm") / "summary.json").write_text(json.dumps({"images": 2048}))
    assert longer(tiny_project(images=2048), folders)[0].startswith("ect: ")


def test_the_stage_goes_on(tmp_path, monkeypatch, capsys):
    def trained(root: Path, images: int, snapshots: int) -> bytes:
        params = load_yaml(ROOT / "tests/e2e/tiny.yaml")
        params["train"] |= {"images": images, "snapshots": snapshots}
        params |= {"tracking": {"mlflow": False}, "compute": {"backend": "inline", "threads": 1}}
        root.mkdir(exist_ok=True)
        (root / "params.yaml").write_text(yaml.safe_dump(params))
        monkeypatch.chdir(root)
        folders = load(root).folders
        if not folders.manifest.exists():
            stages.prepare.main()
        stages.train.main("edm")
        return folders.weights("edm").read_bytes()

    first = trained(tmp_path / "a", 1024, 2)
    assert "goes on" not in "".join(capsys.readouterr())
    grown = trained(tmp_path / "a", 2048, 4)
    assert "goes on from 1\u202f024 images of a shorter run" in "".join(capsys.readouterr())
    assert grown == trained(tmp_path / "b", 2048, 4) != first


def test_more_files_are_said_before_anything_is_trained_anew(tmp_path, monkeypatch, capsys):
    """Not at the first time, nor where the same images are prepared again; also where their order is another."""
    photographs.faces(tmp_path / "faces", 30)
    params = load_yaml(ROOT / "tests/e2e/tiny.yaml")
    params["data"] = {"source": "folder", "path": str(tmp_path / "faces"), "resolution": 8, "channels": 1}
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(params))
    monkeypatch.chdir(tmp_path)
    setup = load(tmp_path)

    def prepared(driver: Driver, stage: str, variables: object) -> None:
        assert stage == "prepare"
        shutil.rmtree(setup.folders.data, ignore_errors=True)  # as DVC does
        prepare(setup.project.sections.data, setup.folders.data)

    def said() -> str:
        driver = Driver(setup, 1)
        driver._todo = ["prepare"]
        driver._run_all({})
        return capsys.readouterr().out

    monkeypatch.setattr(Driver, "_by_dvc", prepared)
    assert said() == ""
    assert said() == ""
    (tmp_path / "faces/000.png").rename(tmp_path / "faces/100.png")  # another order
    assert said().startswith("other images than before (30, and 30 then): every run is trained from the start, as the")
    shutil.copy(tmp_path / "faces/001.png", tmp_path / "faces/101.png")
    assert said().startswith("other images than before (31, and 30 then): every run is trained from the start, as the")
    setup.folders.manifest.write_text("damaged")
    assert said() == ""
