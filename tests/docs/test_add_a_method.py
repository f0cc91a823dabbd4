"""The worked example of CONTRIBUTING.md, in a copy of the project: its code, its entry, its commands."""

import ast
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from pages import CONTRIBUTING, blocks, commands, text

from cmcore.closure import ROOT
from cmcore.config import load_yaml, merge

TITLED = re.compile(r"^```(\w+) title=\"([^\"]+)\"\n(.*?)^```$", re.MULTILINE | re.DOTALL)
SHOWN = {title: block for _, title, block in TITLED.findall(text(CONTRIBUTING))}
REGISTRY = "tests/support/registry.py"
(METHOD,) = (title for title in SHOWN if title.startswith("cmcore/methods/"))
ENTRY = yaml.safe_load(SHOWN["params.yaml"])
(NAME,) = ENTRY["runs"]
# All stages in one process, which saves the imports.
DRIVER = """
import importlib, sys
for stage in sys.argv[1:]:
    kind, _, run = stage.partition("@")
    importlib.import_module(f"stages.{kind}").main(*filter(None, [run]))
"""


def run(folder: Path, *command: str) -> str:
    environment = {**os.environ, "PYTHONPATH": "", "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        [sys.executable, *command], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> Path:
    """A copy of the project with the example in it, on the tiny workload."""
    folder = tmp_path_factory.mktemp("example")
    for name in ("cmcore", "stages", "tests", "workloads"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", folder)
    (folder / METHOD).write_text(SHOWN[METHOD], encoding="utf-8")
    with (folder / REGISTRY).open("a", encoding="utf-8") as file:
        file.write(SHOWN[REGISTRY])
    here = {"compute": {"backend": "inline", "threads": 1}, "tracking": {"mlflow": False}}
    params = merge(merge(load_yaml(ROOT / "tests/e2e/tiny.yaml"), ENTRY), here)
    params["runs"] = {name: params["runs"][name] for name in (ENTRY["runs"][NAME]["init"], NAME)}
    (folder / "params.yaml").write_text(yaml.safe_dump(params), encoding="utf-8")
    return folder


def test_the_page_shows_a_method_and_its_entry():
    assert Path(METHOD).stem == ENTRY["runs"][NAME]["method"]
    assert not (ROOT / METHOD).exists(), "the example would replace a method of the project"
    assert ast.get_docstring(ast.parse(SHOWN[METHOD]))


def test_the_example_is_trained_evaluated_and_tabulated(project):
    init = ENTRY["runs"][NAME]["init"]
    each = [f"{stage}@{name}" for name in (init, NAME) for stage in ("train", "evaluate")]
    run(project, "-c", DRIVER, "prepare", "reference", *each, "tabulate")
    metrics = json.loads((project / f"reports/tiny/metrics/{NAME}.json").read_text(encoding="utf-8"))
    assert metrics["method"] == Path(METHOD).stem
    assert {record["provenance"]["nfe"] for record in metrics["records"]} >= {1, 2}
    table = (project / "reports/tiny/tables/comparison.md").read_text(encoding="utf-8")
    assert f"| {NAME} |" in table


@pytest.mark.slow
def test_the_tests_find_the_example(project):
    """The command of the page, as it stands there."""
    (words,) = [words for words in commands(CONTRIBUTING) if words[0] == "pytest" and NAME in words]
    said = run(project, "-m", *words, "-p", "no:cacheprovider")
    assert re.fullmatch(r"\.{15,}\s+\[100%\]", said.strip()), said


def test_no_code_of_the_page_goes_untested():
    assert [SHOWN[METHOD], SHOWN[REGISTRY]] == blocks(CONTRIBUTING, "python")
    assert [SHOWN["params.yaml"]] == blocks(CONTRIBUTING, "yaml")
