"""dvc.yaml against the code: each stage names exactly the files that decide its results."""

import re
from pathlib import Path

import pytest
import yaml
from pipeline_code import HOW, code_of

from cmcore.closure import ROOT, module_file

FILES = ("dvc.yaml", "searches/dvc.yaml")
STAGES = {
    name: entry.get("do", entry)
    for file in FILES
    for name, entry in yaml.safe_load((ROOT / file).read_text(encoding="utf-8"))["stages"].items()
}
# DVC cannot look up the network of a run, which may be the shared one or its own; nor the method of a search's run.
PLUGIN_FOLDERS = {
    "train": {"cmcore/nets/"},
    "evaluate": {"cmcore/nets/"},
    "tune": {"cmcore/methods/", "cmcore/nets/"},
}
METHOD_FILE = "cmcore/methods/${item.method}.py"
DATA_FILES = {"cmcore/report/published.yaml", "cmcore/report/page.html"}


def code_deps(stage: str) -> set[str]:
    return {dep for dep in STAGES[stage]["deps"] if re.match(r"cmcore/|stages/", dep)}


@pytest.mark.parametrize("stage", STAGES)
def test_code_dependencies_are_the_import_closure(stage):
    expected = code_of(stage) | (DATA_FILES if stage == "tabulate" else set())
    folders = PLUGIN_FOLDERS.get(stage, set())
    expected = {file for file in expected if not file.startswith(tuple(folders))} | folders
    if folders and "cmcore/methods/" not in folders:
        expected.add(METHOD_FILE)
    named = code_deps(stage)
    assert sorted(expected - named) == [], "add to dvc.yaml"
    assert sorted(named - expected) == [], "take out of dvc.yaml"


def test_every_module_that_is_left_out_exists():
    """A renamed one would come back into the closure, or hide something else."""
    assert [module for module in HOW if module_file(module) is None] == []


def test_every_data_file_beside_the_code_is_named():
    there = {path.relative_to(ROOT).as_posix() for end in ("*.yaml", "*.html") for path in (ROOT / "cmcore").rglob(end)}
    assert there == DATA_FILES


@pytest.mark.parametrize("stage", STAGES)
def test_how_it_runs_is_no_parameter(stage):
    assert not {"compute", "tracking"} & {name.split(".")[0] for name in STAGES[stage]["params"]}


def test_active_parameters_are_those_of_the_default_workload():
    assert (ROOT / "params.yaml").read_bytes() == (ROOT / "workloads" / "digits.yaml").read_bytes()


def test_stage_scripts_are_short():
    long = {name: len(Path(ROOT, "stages", f"{name}.py").read_text().splitlines()) for name in STAGES}
    assert {name: lines for name, lines in long.items() if lines > 80} == {}


def test_searches_are_apart_from_what_dvc_repro_runs():
    assert "tune" not in yaml.safe_load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))["stages"]
    assert STAGES["tune"]["wdir"] == ".."
