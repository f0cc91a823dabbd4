"""The plots and artifacts of dvc.yaml, as DVC itself finds, shows and compares them."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from cmcore.closure import ROOT

pytest.importorskip("dvc")
FILE = yaml.safe_load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))
TABLE = "reports/digits/tables/comparison.csv"


def run(folder: Path, *words: str) -> str:
    """The output of a command that has to succeed."""
    done = subprocess.run(words, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> Path:
    """The pipeline and the committed report in a repository of its own, a value changed since its commit."""
    folder = tmp_path_factory.mktemp("project")
    for name in ("dvc.yaml", "params.yaml", ".dvcignore", ".dvc/config", ".dvc/plots", "reports/digits"):
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        (shutil.copytree if (ROOT / name).is_dir() else shutil.copy)(ROOT / name, target)
    run(folder, "git", "init", "-q")
    run(folder, "git", "add", ".")
    run(folder, "git", "-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false", "commit", "-qm", "a")
    head, row, *rest = (folder / TABLE).read_text(encoding="utf-8").splitlines()
    cells = row.split(",")
    cells[head.split(",").index("fd")] = "123.5"
    (folder / TABLE).write_text("\n".join([head, ",".join(cells), *rest]) + "\n", encoding="utf-8")
    return folder


def found(project: Path, *words: str) -> dict[str, Any]:
    """What `dvc plots` shows, by name."""
    return json.loads(run(project, sys.executable, "-m", "dvc", "plots", *words, "--json"))["data"]


def test_tables_figures_and_grids_are_shown(project):
    shown = found(project, "show")
    assert shown["quality"][0]["type"] == "vega"
    figures = [name for name in FILE["plots"] if isinstance(name, str)]
    for name in [*(name.replace("${workload}", "digits") for name in figures), "reports/digits/grids/ect.png"]:
        assert [one["type"] for one in shown[name]] == ["image"], name


def test_a_changed_value_is_in_the_comparison_of_revisions(project):
    (plot,) = found(project, "diff", "HEAD", "--targets", TABLE, "quality")["quality"]
    assert set(plot["revisions"]) == {"HEAD", "workspace"}
    values = plot["content"]["data"]["values"]
    assert {"123.5"} == {value["fd"] for value in values if value["rev"] == "workspace"} - {
        value["fd"] for value in values if value["rev"] == "HEAD"
    }
    assert plot["content"]["encoding"]["color"]["field"] in values[0]


def test_the_artifacts_are_outputs_of_stages():
    stages = [entry.get("do", entry) for entry in FILE["stages"].values()]
    outputs = {path for stage in stages for key in ("outs", "metrics", "plots") for one in stage.get(key, [])
               for path in ([one] if isinstance(one, str) else one)}  # fmt: skip
    assert {entry["path"] for entry in FILE["artifacts"].values()} <= outputs
