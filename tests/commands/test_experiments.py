"""Parameters for one run of the pipeline, by `cmlab repro --set` and as experiments of DVC, in a path with a space."""

import json
from typing import Any

import pytest

from benchmarks.workspace import Workspace
from cmcore.closure import ROOT
from cmcore.config import load_yaml

pytest.importorskip("dvc")
pytestmark = [pytest.mark.slow, pytest.mark.timeout(600), pytest.mark.xdist_group("experiments")]

KEY = "runs.ect.options.q"
SETTING = f"{KEY}=8"


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> Workspace:
    """The tiny workload after `cmlab repro`, its results committed."""
    params = load_yaml(ROOT / "tests/e2e/tiny.yaml")
    params |= {"compute": {"backend": "inline", "threads": 1}, "tracking": {"mlflow": False}}
    space = Workspace(tmp_path_factory.mktemp("experiments") / "my project", params)
    space.call("cmcore.commands", "repro")
    return space


def score(space: Workspace) -> float:
    """A score of the student in the workspace."""
    text = (space.folder / "reports/tiny/metrics/ect.json").read_text(encoding="utf-8")
    return json.loads(text)["scores"]["fd_nfe1"]


def q_in(space: Workspace) -> Any:
    return load_yaml(space.folder / "params.yaml")["runs"]["ect"]["options"]["q"]


def said(space: Workspace) -> str:
    return space.folder.with_name("log.txt").read_text(encoding="utf-8")


def test_set_holds_for_one_run_and_experiments_find_what_it_computed(project: Workspace):
    log = project.folder.with_name("log.txt")
    before, files = score(project), (project.folder / "params.yaml").read_bytes()
    page = (project.folder / "reports/tiny/index.html").read_bytes()

    project.call("cmcore.commands", "repro", "--set", SETTING)
    after = score(project)
    assert after != before
    assert (project.folder / "params.yaml").read_bytes() == files
    assert f"reports/ now show {SETTING}; `cmlab repro` restores" in said(project)

    log.unlink()
    project.call("cmcore.commands", "repro")
    assert "train@ect: restored" in said(project)
    assert (project.folder / "reports/tiny/index.html").read_bytes() == page

    # DVC's own experiment takes the results of the run above from the cache, and lays them over the workspace.
    log.unlink()
    project.call("dvc", "exp", "run", "--set-param", SETTING, "--name", "q8", "tabulate")
    assert "Stage 'train@ect' is cached" in said(project)
    assert (score(project), q_in(project)) == (after, 8)

    log.unlink()
    project.call("dvc", "exp", "show", "--json")
    shown = said(project)
    assert '"name": "q8"' in shown
    assert f'"fd_nfe1": {after!r}' in shown


def test_a_wrong_override_is_one_line_before_anything_runs(project: Workspace):
    files = (project.folder / "params.yaml").read_bytes()
    with pytest.raises(RuntimeError, match=r"ended with 2:\n(.*\n)*cmlab repro: runs\.ect\.options\.qq: unknown key"):
        project.call("cmcore.commands", "repro", "--set", "runs.ect.options.qq=8")
    assert (project.folder / "params.yaml").read_bytes() == files
