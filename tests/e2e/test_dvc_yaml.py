"""dvc.yaml: every stage depends on the digest of its code."""

from pathlib import Path

import pytest
import yaml

from cmcore.assemble.project import Sections
from cmcore.closure import ROOT
from cmcore.config import load_yaml, read
from cmcore.pipeline.code import LIBRARIES, code_file, code_roots

FILES = ("dvc.yaml", "searches/dvc.yaml")
STAGES = {
    name: entry.get("do", entry)
    for file in FILES
    for name, entry in yaml.safe_load((ROOT / file).read_text(encoding="utf-8"))["stages"].items()
}
RUN = {"train": "@${key}", "evaluate": "@${key}", "tune": "@${item.base}"}


@pytest.mark.parametrize("stage", [stage for stage in STAGES if stage != "code"])
def test_a_stage_depends_on_its_code_and_on_no_other(stage):
    code = [dep for dep in STAGES[stage]["deps"] if "/code" in dep or dep.startswith(("cmcore", "stages"))]
    assert code == ["outputs/${workload}/code/" + code_file(stage + RUN.get(stage, ""))]


def test_there_is_code_for_every_stage():
    sections = read(Sections, load_yaml(ROOT / "tests/e2e/tiny.yaml"))
    expected = {"prepare", "reference", "edit", "tabulate"} | {f"{kind}@{run}" for kind in RUN for run in sections.runs}
    assert set(code_roots(sections)) == expected
    assert set(LIBRARIES) == set(STAGES) - {"code"}


def test_dvc_yaml_is_short():
    assert all(len((ROOT / file).read_text(encoding="utf-8").splitlines()) < 150 for file in FILES)


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
