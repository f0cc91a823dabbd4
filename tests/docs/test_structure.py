"""Lists and tables of the pages against the project: layers, stages, methods, networks, commands."""

import re
import tomllib
from pathlib import Path

import pytest
import typer
import yaml
from pages import DOCS, README, blocks, text

from cmcore import plugins
from cmcore.closure import ROOT
from cmcore.commands.app import app

PAGE = DOCS / "how-it-is-built.md"


def test_the_layers_are_those_of_the_import_contract():
    tools = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]
    (layers,) = (one["layers"] for one in tools["importlinter"]["contracts"] if one["type"] == "layers")
    (block,) = blocks(PAGE, "")
    shown = [set(re.findall(r"cmcore\.\w+|^stages", re.split(r"\s{3,}", line)[0])) for line in block.splitlines()]
    assert shown == [set(re.split(r"\s*\|\s*", layer)) for layer in layers]


def test_the_stages_are_those_of_dvc():
    listed = set(re.findall(r"^\| `(\w+)(?:@[^`]*)?`", text(PAGE), re.MULTILINE))
    files = ("dvc.yaml", "searches/dvc.yaml")
    declared = {
        stage for file in files for stage in yaml.safe_load((ROOT / file).read_text(encoding="utf-8"))["stages"]
    }
    assert declared <= listed


def listed(page: Path, head: str) -> list[str]:
    """The first column of the table whose header begins so."""
    (table,) = re.findall(rf"^\| `{head}` \|.*\n\|[-|: ]+\n((?:\|.*\n)+)", text(page), re.MULTILINE)
    return re.findall(r"^\| `(\w+)`", table, re.MULTILINE)


@pytest.mark.parametrize("page", [README, DOCS / "methods.md"], ids=lambda page: page.name)
def test_every_method_is_in_the_table(page):
    assert sorted(listed(page, "method")) == sorted(plugins.available("cmcore.methods"))


def test_every_network_is_in_the_table():
    assert sorted(listed(DOCS / "methods.md", "kind")) == sorted(plugins.available("cmcore.nets"))


def test_readme_lists_the_commands():
    (lines,) = re.findall(r"^cmlab --help +# (.+(?:\n +# .+)*)$", text(README), re.MULTILINE)
    commands = typer.main.get_command(app).commands
    assert re.split(r",\s+(?:# )?", lines) == [name for name, command in commands.items() if not command.hidden]
