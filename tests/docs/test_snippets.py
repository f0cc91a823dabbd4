"""The workload that the pages show."""

from pathlib import Path

import pytest
import yaml
from pages import PAGES, README, blocks

from cmcore import plugins
from cmcore.closure import ROOT
from cmcore.config import load_yaml, merge, read
from cmcore.data.settings import DataConfig
from cmcore.pipeline.common import load

WORKLOADS = [page for page in PAGES if any("workload: mine" in block for block in blocks(page, "yaml"))]


def workload(page: Path) -> dict:
    (block,) = (block for block in blocks(page, "yaml") if "workload: mine" in block)
    return yaml.safe_load(block)


def test_readme_and_the_page_on_data_show_a_workload():
    assert {README, ROOT / "docs/own-data.md"} == set(WORKLOADS)


@pytest.mark.parametrize("page", WORKLOADS, ids=lambda page: page.name)
def test_the_sections_of_the_workload_are_valid(page):
    shown = workload(page)
    assert read(DataConfig, shown["data"], "data").resolution == 32
    options = {key: value for key, value in shown["net"].items() if key != "kind"}
    read(plugins.load("cmcore.nets", shown["net"]["kind"]).Config, options, "net")


@pytest.mark.parametrize("page", WORKLOADS, ids=lambda page: page.name)
def test_the_workload_makes_a_project_on_the_default_one(page, tmp_path):
    shown, base = workload(page), load_yaml(ROOT / "workloads/digits.yaml")
    net = shown.pop("net")
    whole = {**merge(base, shown), "net": {"c_noise": base["net"]["c_noise"], **net}}
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(whole))
    assert load(tmp_path).project.workload == "mine"
