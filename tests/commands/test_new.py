"""`cmlab new` on folders as people have them: the workload is accepted, prepared, planned, trained and measured."""

import json
import re
import shutil
from pathlib import Path

import photographs
import pytest
import yaml

from cmcore.assemble import preview
from cmcore.atomic import write_atomic
from cmcore.budget import choose, measure
from cmcore.budget.host import Host
from cmcore.closure import ROOT
from cmcore.commands import new as command
from cmcore.commands import plan
from cmcore.commands.app import main
from cmcore.commands.new import new, seconds
from cmcore.commands.place import CommandError
from cmcore.config import ConfigError
from cmcore.data.sources.prepare import prepare
from cmcore.errors import DataError
from cmcore.pipeline.common import load
from cmcore.pipeline.sizes import check_data, count_parameters

FOLDERS = {
    "photographs": (photographs.photographs, 3, 2, ""),
    "faces": (photographs.faces, 1, 0, ""),
    "icons": (photographs.icons, 3, 0, "white"),
    "large": (photographs.large, 3, 0, ""),
}


@pytest.fixture
def quick(monkeypatch):
    """Steps of a known speed, on a machine of two cores."""
    monkeypatch.setattr(choose, "training_seconds", lambda run, data, rows, device="cpu": 1e-6 * data.shape[1] ** 2)
    monkeypatch.setattr(choose, "forward_seconds", lambda run, data, rows, device="cpu": 3e-7 * data.shape[1] ** 2)
    monkeypatch.setattr(choose, "feature_seconds", lambda data, config, device="cpu": (1e-4, 1e-5))
    monkeypatch.setattr(command, "this_host", lambda: Host(cores=2, memory=16e9))


@pytest.fixture
def project(tmp_path) -> Path:
    """An empty project folder."""
    folder = tmp_path / "project"
    (folder / "workloads").mkdir(parents=True)
    (folder / "dvc.yaml").touch()
    return folder


def made(project: Path, data: Path, **of) -> list[str]:
    """What the command says."""
    return new("mine", data, project, **{"budget": "20min", "methods": "edm,ect", "say": lambda line: None, **of})


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("kind", FOLDERS)
def test_the_workload_is_accepted_by_every_check_and_by_plan(project, tmp_path, kind):
    draw, channels, classes, background = FOLDERS[kind]
    said = made(project, draw(tmp_path / kind))
    file = project / "workloads/mine.yaml"
    write_atomic(project / "params.yaml", file.read_bytes())
    setup = load(project)
    sections = setup.project.sections
    assert (sections.workload, sections.data.channels, sections.data.classes) == ("mine", channels, classes)
    assert sections.data.background == background
    assert list(setup.project.runs) == ["edm", "ect"]
    manifest = prepare(sections.data, tmp_path / "prepared")
    check_data(setup.project, manifest)
    assert manifest["shape"] == [channels, sections.data.resolution, sections.data.resolution]
    assert manifest["std"] > 0
    assert set(count_parameters(setup.project)) == {"edm", "ect"}
    planned = plan.lines(project, "mine", gpu="cpu")
    assert not [line for line in planned if line.startswith("!")]
    assert [line.split()[0] for line in planned[3:5]] == ["edm", "ect"]
    assert said[-2:] == ["    make use WORKLOAD=mine", "    make repro JOBS=1"]
    assert [line.split()[0] for line in said if re.match(r"(edm|ect) ", line)] == ["edm", "ect"]


@pytest.mark.usefixtures("quick")
def test_choices_have_reasons(project, tmp_path):
    made(project, photographs.photographs(tmp_path / "photographs"))
    text = (project / "workloads/mine.yaml").read_text(encoding="utf-8")
    assert not [line for line in text.splitlines() if line.strip() and " # " not in line and not said_above(line)]
    assert "bars, discs" in text
    assert "about" in text.splitlines()[0]


TITLES = ("data:", "diffusion:", "eval:", "compute:", "tracking:")
PLAIN = (
    "#",
    "workload:",
    "  path:",
    "  subfolder:",
    "    method:",
    "    init:",
    "    teacher:",
    "    short:",
    "    long:",
)


def said_above(line: str) -> bool:
    """Whether a line of a workload needs no reason of its own: a title, a name, or part of what has one."""
    return line in TITLES or line.startswith((*PLAIN, "      "))


@pytest.mark.usefixtures("quick")
def test_a_thousand_images_leave_a_tenth_for_tests(project, tmp_path):
    made(project, photographs.faces(tmp_path / "faces", 1000))
    values = yaml.safe_load((project / "workloads/mine.yaml").read_text())
    assert values["data"]["test"] == 0.1
    assert values["eval"]["kid_size"] == 100
    manifest = prepare(load_data(project), tmp_path / "prepared")
    assert manifest["count"] == 900


def load_data(project: Path):
    shutil.copy(project / "workloads/mine.yaml", project / "params.yaml")
    return load(project).project.sections.data


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("data/images", "data/images"),
        ("{0}/project/data/images", "data/images"),
        ("../disk/images", "{0}/disk/images"),
        ("../project/own", "own"),
    ],
)
def test_paths_in_the_project_are_relative_and_its_links_stay(project, tmp_path, monkeypatch, given, expected):
    photographs.photographs(tmp_path / "disk/images", 24)
    photographs.photographs(project / "own", 24)
    (project / "data").symlink_to(tmp_path / "disk")
    monkeypatch.chdir(project)
    made(project, Path(given.format(tmp_path)), budget="60min")
    written = yaml.safe_load((project / "workloads/mine.yaml").read_text())
    assert written["data"]["path"] == expected.format(tmp_path)


@pytest.mark.usefixtures("quick")
def test_nothing_is_overwritten(project, tmp_path):
    data = photographs.faces(tmp_path / "faces", 20)
    made(project, data)
    before = (project / "workloads/mine.yaml").read_bytes()
    with pytest.raises(ConfigError, match=r"NAME: workloads/mine\.yaml exists and is not overwritten"):
        made(project, data)
    assert (project / "workloads/mine.yaml").read_bytes() == before


@pytest.mark.usefixtures("quick")
def test_what_does_not_fit_is_not_written(project, tmp_path):
    with pytest.raises(CommandError, match=r"2 methods at 8x8 cannot see enough images in 60 s .* --budget \d+min"):
        made(project, photographs.faces(tmp_path / "faces", 100), budget="1min", methods="ect")
    assert not list((project / "workloads").iterdir())


@pytest.mark.parametrize(("written", "expected"), [
    ("20min", 1200), ("8h", 28800), ("1h30min", 5400), ("1h 30m", 5400), ("0.5h", 1800), ("2d", 172800), ("90s", 90),
])  # fmt: skip
def test_budgets(written, expected):
    assert seconds(written) == expected


@pytest.mark.parametrize("written", ["", "2", "two hours", "2h!", "-1h", "30s", "h"])
def test_what_is_no_budget(written):
    with pytest.raises(ConfigError, match="--budget: expected"):
        seconds(written)


@pytest.mark.parametrize("name", ["", "a/b", "a b", "ü", "../up", "a.b"])
def test_names_that_are_refused(project, tmp_path, name):
    with pytest.raises(ConfigError, match="NAME: expected a name"):
        new(name, tmp_path, project, budget="2h", methods="edm")


def test_broken_files_are_named_before_anything_is_measured(project, tmp_path):
    data = photographs.faces(tmp_path / "faces", 30)
    (data / "000.png").write_bytes(b"nothing")
    with pytest.raises(DataError, match=r"1 of 30 files cannot be used as images; .*000\.png"):
        made(project, data)


@pytest.mark.usefixtures("quick")
def test_a_busy_machine_is_said(project, tmp_path, monkeypatch):
    said: list[str] = []
    data = photographs.faces(tmp_path / "faces", 20)
    made(project, data, say=said.append)
    assert not [line for line in said if "other programs" in line]
    monkeypatch.setattr(command, "this_host", lambda: Host(cores=2, memory=16e9, busy=0.8))
    new("busy", data, project, budget="20min", methods="ect", say=said.append)
    assert "other programs have 80% of the cores now: the times of the plan are for when they are done" in said


def test_from_the_command_line(project, tmp_path, monkeypatch, capsys):
    """Measured for real, if shortly; a path is relative to where the command is typed."""
    monkeypatch.setattr(measure, "SECONDS", 0.0)
    monkeypatch.setattr(measure, "LEAST", 1)
    photographs.faces(project / "sub/faces", 20)
    monkeypatch.chdir(project / "sub")
    with pytest.raises(SystemExit) as end:
        main(["new", "mine", "--data", "faces", "--budget", "100d", "--methods", "ect", "--resolution", "8"])
    assert end.value.code == 0
    said = capsys.readouterr().out
    assert "20 images, grey, shorter side" in said or "20 images, grey, 40 pixels" in said
    assert "make use WORKLOAD=mine" in said
    values = yaml.safe_load((project / "workloads/mine.yaml").read_text())
    assert values["data"]["path"] == "sub/faces"
    assert list(values["runs"]) == ["edm", "ect"]
    with pytest.raises(SystemExit) as end:
        main(["new", "mine", "--data", "faces"])
    assert end.value.code == 2
    assert "is not overwritten" in capsys.readouterr().err


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize(
    ("kind", "resolution"),
    [("faces", 8), pytest.param("photographs", 16, marks=[pytest.mark.slow, pytest.mark.timeout(900)])],
)
def test_from_images_to_the_report(project, tmp_path, monkeypatch, kind, resolution):
    """Every stage in this process, on the workload as it is written but for its length."""
    from stages import code as digests
    from stages import edit, evaluate, prepare, reference, tabulate, train

    monkeypatch.setattr(choose, "least_images", lambda resolution: 128)
    monkeypatch.setattr(choose, "EPOCHS", 2)
    made(project, FOLDERS[kind][0](tmp_path / kind), resolution=resolution)
    values = yaml.safe_load((project / "workloads/mine.yaml").read_text(encoding="utf-8"))
    values["compute"]["backend"], values["tracking"]["mlflow"] = "inline", False
    values["eval"] |= {
        "samples": 40, "scan_samples": 30, "snapshot_samples": 30, "teacher_steps": 2, "bootstrap": 2, "kid_subsets": 2,
        "kid_size": 10, "nearest": 10, "endpoints": 10,
    }  # fmt: skip
    values["eval"]["reference"]["images"] = 128
    values["train"] |= {"snapshots": 1, "batch": 16}
    for section in (values["train"], *(run.get("train", {}) for run in values["runs"].values())):
        for key in {"images", "log_images", "lr_ref_images", "lr_ramp_images"} & set(section):
            section[key] //= 4  # in batches of a quarter: as many steps
    (project / "params.yaml").write_text(yaml.safe_dump(values))
    monkeypatch.chdir(project)
    monkeypatch.setattr(edit, "STEPS", (3,))
    monkeypatch.setattr(preview, "STEPS", 2)
    for stage in (digests, prepare, reference):
        stage.main()
    for name in ("edm", "ect"):
        train.main(name)
        evaluate.main(name)
    edit.main()
    tabulate.main()
    assert (project / "reports/mine/index.html").is_file()
    records = json.loads((project / "reports/mine/metrics/ect.json").read_text())["records"]
    assert {"memorised", "nearest"} <= {record["metric"] for record in records}
    headline = (project / "reports/mine/tables/headline.md").read_text()
    assert re.search(r"\| ect \| ECT \| \d", headline)


def test_the_page_shows_the_command():
    assert "cmlab new " in (ROOT / "docs/own-data.md").read_text(encoding="utf-8")
