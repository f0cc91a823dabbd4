"""docs/how-it-is-built.md against the project: layers, stages, commands."""

import re
import tomllib

import typer
import yaml
from pages import DOCS, README, blocks, text

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


def test_readme_lists_the_commands():
    (line,) = re.findall(r"^cmlab --help +# (.+)$", text(README), re.MULTILINE)
    commands = typer.main.get_command(app).commands
    assert line.split(", ") == [name for name, command in commands.items() if not command.hidden]
