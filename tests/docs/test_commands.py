"""The commands that the pages tell a reader to type exist, with these options, and so do the files that they name."""

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
from pages import PAGES, commands

from cmcore.closure import ROOT, module_file
from cmcore.commands.app import app

COMMANDS = [(page, words) for page in PAGES for words in commands(page)]


def check(words: list[str]) -> None:
    """Fail if a command cannot be meant for this project. A program that is not known here has to be added."""
    program, *rest = words
    checks = {
        "cmlab": check_cmlab, "cp": check_cp, "docker": check_docker, "dvc": check_dvc, "export": check_export,
        "git": check_git, "make": check_make, "pytest": check_pytest, "python": check_python, "ray": check_ray,
        "source": check_source,
    }  # fmt: skip
    assert program in checks, f"a page shows {program!r}, which this test does not know"
    checks[program](rest)


def check_make(words: list[str]) -> None:
    """One target and variables that the Makefile uses."""
    done = subprocess.run(["make", "-n", *words], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert len([word for word in words if "=" not in word]) == 1
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for variable in (word.partition("=")[0] for word in words if "=" in word):
        assert f"$({variable})" in makefile, variable
    for line in re.findall(r"/cmlab\" (.*)", done.stdout):
        check_cmlab(shlex.split(line))


def check_cmlab(words: list[str]) -> None:
    """A command line that `cmlab` would accept."""
    command: Any = typer.main.get_command(app)
    with command.make_context("cmlab", ["--version"], resilient_parsing=True) as top:
        try:
            if words != ["--help"]:
                _, chosen, rest = command.resolve_command(top, words)
                assert chosen is not None, words[0]
                chosen.make_context(words[0], rest, parent=top)
        except (typer.TyperException, click.ClickException) as error:
            raise AssertionError(error.format_message()) from error
        except (typer.Exit, click.exceptions.Exit):
            assert "--help" in words


def check_dvc(words: list[str]) -> None:
    """A command line that DVC would accept, about stages of this pipeline."""
    pytest.importorskip("dvc")
    from dvc.cli import DvcParserError
    from dvc.cli.parser import get_main_parser

    try:
        parsed = get_main_parser().parse_args(words)
    except (SystemExit, DvcParserError) as error:
        raise AssertionError(f"dvc {' '.join(words)}: {error}") from error
    if words[0] == "repro":
        for target in parsed.targets:
            file, _, stage = target.rpartition(":")
            stages = yaml.safe_load((ROOT / (file or "dvc.yaml")).read_text(encoding="utf-8"))["stages"]
            assert stage.partition("@")[0] in stages, target


def check_docker(words: list[str]) -> None:
    """Build arguments of the Dockerfile, the image that the page builds, and a command for it."""
    verb, *rest = words
    if verb == "build":
        declared = re.findall(r"^ARG (\w+)", (ROOT / "Dockerfile").read_text(encoding="utf-8"), re.MULTILINE)
        given = [rest[place + 1].partition("=")[0] for place, word in enumerate(rest) if word == "--build-arg"]
        assert set(given) <= set(declared)
        assert rest[-1] == "."
    else:
        assert verb == "run"
        check(rest[rest.index("cmlab") + 1 :])


def check_pytest(words: list[str]) -> None:
    """Folders and files of tests."""
    paths = [word for word in words if word.startswith("tests")]
    assert paths
    assert all((ROOT / path.partition("::")[0]).exists() for path in paths)


def check_python(words: list[str]) -> None:
    """A module of the project, and options that it knows."""
    flag, name, *rest = words
    assert flag == "-m"
    file = module_file(name, ROOT) or ROOT / (name.replace(".", "/") + ".py")
    if (file.parent / name.split(".")[-1] / "__init__.py").exists():
        file = file.parent / name.split(".")[-1] / "__main__.py"
    assert file.exists(), name
    source = file.read_text(encoding="utf-8")
    assert all(f'"{word}"' in source for word in rest if word.startswith("--")), words


def check_ray(words: list[str]) -> None:
    """A command of Ray, with options that it has."""
    scripts = pytest.importorskip("ray.scripts.scripts")
    command = scripts.cli.commands.get(words[0])
    assert command is not None, words[0]
    options = {name for option in command.params for name in option.opts if isinstance(option, click.Option)}
    assert {word.partition("=")[0] for word in words[1:]} <= options


def check_cp(words: list[str]) -> None:
    """A file that is there."""
    assert (ROOT / words[0]).is_file(), words[0]


def check_git(words: list[str]) -> None:
    """A command of git, about files that are there."""
    assert words[0] in ("add", "checkout", "clone", "commit", "status"), words[0]
    paths = words[words.index("--") + 1 :] if "--" in words else []
    assert all((ROOT / path).exists() for path in paths), paths


def check_export(words: list[str]) -> None:
    """Variables with values."""
    assert all(re.fullmatch(r"[A-Z_]+=.+", word) for word in words)


def check_source(words: list[str]) -> None:
    """The environment, which the first `make` creates."""
    assert words == [".venv/bin/activate"]


@pytest.mark.parametrize(("page", "words"), COMMANDS, ids=lambda value: value.name if isinstance(value, Path) else None)
@pytest.mark.skipif(shutil.which("make") is None, reason="there is no make")
def test_a_command_names_what_exists(page, words):
    check(words)


@pytest.mark.parametrize(
    "command",
    [
        "make reproduce", "make plan GPUZ=8", "cmlab reproduce", "cmlab plan --gpuz h100", "cmlab use", "ray begin",
        "ray start --heads", "python -m stages.nothing", "python -m benchmarks.speed --colour", "cp a b", "frobnicate",
        "dvc reproduce", "dvc repro trains@ect", "dvc exp run --sett a=1", "docker build --build-arg GPU=1 .",
        "docker run cmlab make reproduce", "pytest tests/nothing",
        "git reproduce a", "git checkout -- nothing.yaml",
    ],
)  # fmt: skip
def test_a_wrong_command_would_be_found(command):
    with pytest.raises(AssertionError):
        check(command.split())


def test_commands_of_every_kind_were_found():
    assert {"make", "cmlab", "dvc", "docker", "ray", "cp", "pytest", "python"} <= {words[0] for _, words in COMMANDS}
