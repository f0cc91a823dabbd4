"""What README tells a reader to type exists, and so does what it points at."""

import re
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import Any

import click
import pytest
import typer
import yaml
from readme_commands import README, blocks, commands

from cmcore import plugins
from cmcore.closure import ROOT, module_file
from cmcore.commands.app import app
from cmcore.config import load_yaml, merge, read
from cmcore.data.settings import DataConfig
from cmcore.pipeline.common import load

TEXT = README.read_text(encoding="utf-8")
PROSE = re.findall(r"`((?:make|cmlab) [^`]+)`", TEXT)
LINKS = sorted({link for link in re.findall(r"\]\(([^)#\s]+)", TEXT) if "://" not in link})
NAMED = sorted(set(re.findall(r"`((?:cmcore|stages|tests|benchmarks|workloads)/[\w./-]+)`", TEXT)))


def check(words: list[str]) -> None:
    """Fail if a command cannot be meant for this project. One that is not known here has to be taught to this test."""
    program, *rest = words
    if program == "make":
        done = subprocess.run(["make", "-n", *rest], cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        targets = [word for word in rest if "=" not in word]
        assert len(targets) == 1
        for line in re.findall(r"/cmlab\" (.*)", done.stdout.replace("\\\n", " ")):
            check_cmlab(shlex.split(line))
    elif program in ("cmlab", ".venv/bin/cmlab"):
        check_cmlab(rest)
    elif program == "ray":
        check_ray(rest)
    elif program in ("python", ".venv/bin/python"):
        assert rest[0] == "-m"
        assert module_file(rest[1]) is not None, rest[1]
    elif program == "cp":
        assert (ROOT / rest[0]).is_file(), rest[0]
    elif program == "source":
        # Not there before the first `make`, which is what makes it.
        assert rest == [".venv/bin/activate"]
    else:
        assert program == "export", f"README shows {program!r}, and this test does not know it"


def check_cmlab(words: list[str]) -> None:
    """Fail if the command line of the project would refuse the words, whatever the values of parameters."""
    command: Any = typer.main.get_command(app)
    with command.context_class(command, info_name="cmlab") as top:
        try:
            _, chosen, rest = command.resolve_command(top, words)
            chosen.make_context(words[0], rest, parent=top)
        except typer.TyperException as error:
            raise AssertionError(error.format_message()) from error


def check_ray(words: list[str]) -> None:
    """Fail if Ray's command line has no such command, or the command no such option."""
    scripts = pytest.importorskip("ray.scripts.scripts")
    command = scripts.cli.commands.get(words[0])
    assert command is not None, words[0]
    options = {name for option in command.params for name in option.opts if isinstance(option, click.Option)}
    assert {word.partition("=")[0] for word in words[1:]} <= options


@pytest.mark.parametrize("words", [*commands(), *map(str.split, PROSE)], ids=" ".join)
@pytest.mark.skipif(shutil.which("make") is None, reason="there is no make")
def test_a_command_names_what_exists(words):
    check(words)


@pytest.mark.parametrize(
    "command",
    [
        "make reproduce",
        "make plan GPUS=x",
        "cmlab reproduce",
        "cmlab plan --gpu",
        "cmlab use",
        "ray begin",
        "ray start --heads",
        "python -m stages.nothing",
        "cp a b",
        "frobnicate",
    ],
)
def test_a_wrong_command_would_be_found(command):
    with pytest.raises(AssertionError):
        check(command.split())


def test_the_commands_were_found():
    assert {"make", "ray", "cp"} <= {words[0] for words in commands()}
    assert len(PROSE) > 3


def in_git(path: str) -> bool:
    done = subprocess.run(["git", "-C", str(ROOT), "ls-files", "--", path], capture_output=True, text=True, check=False)
    return done.returncode == 0 and bool(done.stdout.strip())


@pytest.mark.parametrize("path", [*LINKS, *NAMED])
def test_a_file_that_is_named_exists(path):
    if not (ROOT / ".git").exists():
        assert (ROOT / path).exists()
    elif path.startswith("reports/"):
        if not ((ROOT / "reports/digits").exists() or in_git("reports/digits")):
            pytest.skip("the default workload was never evaluated here")
        assert (ROOT / path).exists(), "make repro writes it"
    else:
        assert in_git(path), "it is not in git"


def test_there_are_links_and_pictures():
    assert any(link.endswith(".png") for link in LINKS)
    assert any(link.endswith(".html") for link in LINKS)


def test_the_example_of_a_workload_is_valid():
    """The two sections as they stand, and the whole with the default workload below them."""
    (text,) = blocks("yaml")
    shown = yaml.safe_load(text)
    assert read(DataConfig, shown["data"], "data").resolution == 32
    options = {key: value for key, value in shown["net"].items() if key != "kind"}
    read(plugins.load("cmcore.nets", shown["net"]["kind"]).Config, options, "net")


def test_the_example_of_a_workload_makes_a_project(tmp_path):
    (text,) = blocks("yaml")
    shown, base = yaml.safe_load(text), load_yaml(ROOT / "workloads/digits.yaml")
    net = shown.pop("net")
    whole = {**merge(base, shown), "net": {"c_noise": base["net"]["c_noise"], **net}}
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(whole))
    assert load(Path(tmp_path)).project.workload == "mine"
