"""Licence, citation, typing marker and container: what a newcomer and a packager look for."""

import hashlib
import re
import shlex
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest
import yaml

from cmcore.closure import ROOT

APACHE_2 = "cfc7749b96f63bd31c3c42b5c471bf756814053e847c10f3eb003417bc523d30"  # LICENSE-2.0.txt as Apache publishes it
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
CITATION = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))


def test_the_licence_is_the_apache_licence_word_for_word():
    assert hashlib.sha256((ROOT / "LICENSE").read_bytes()).hexdigest() == APACHE_2
    assert (PROJECT["license"], PROJECT["license-files"]) == ("Apache-2.0", ["LICENSE"])


def test_the_citation_has_what_the_format_requires():
    """Citation File Format 1.2.0: required keys, and the types of those that are used."""
    assert {"cff-version", "message", "title", "authors"} <= CITATION.keys()
    assert CITATION["cff-version"] == "1.2.0"
    assert CITATION["type"] in ("software", "dataset")
    assert CITATION["authors"]
    for author in CITATION["authors"]:
        assert isinstance(author, dict)
        assert author.keys() & {"name", "family-names", "given-names", "alias"}
    texts = [CITATION[key] for key in ("message", "title", "abstract", "version", "license")] + CITATION["keywords"]
    assert all(isinstance(text, str) and text for text in texts)
    assert len(set(CITATION["keywords"])) == len(CITATION["keywords"])


def test_citation_and_package_agree():
    assert CITATION["version"] == PROJECT["version"]
    assert CITATION["license"] == PROJECT["license"]
    assert CITATION["title"].startswith(PROJECT["name"])


def test_the_typing_marker_is_packaged():
    setuptools = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]
    assert (ROOT / "cmcore/py.typed").is_file()
    assert "py.typed" in setuptools["package-data"]["*"]


def test_every_extra_is_pinned():
    pinned = {line.partition("==")[0].lower().replace("_", "-") for line in lines(ROOT / "constraints.txt")}
    wanted = [*PROJECT["dependencies"], *(one for extra in PROJECT["optional-dependencies"].values() for one in extra)]
    names = {re.split(r"[\[<>=!;]", one)[0].lower().replace("_", "-") for one in wanted}
    assert names <= pinned


def test_the_environment_of_the_tests_has_every_extra():
    """So that no test is left out for a package that is missing."""
    (extras,) = re.findall(r"^\$\(VENV\)/\.dev: EXTRAS := (\S+)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert set(extras.split(",")) == PROJECT["optional-dependencies"].keys()


def lines(path: Path) -> list[str]:
    """The lines of a file that are no comment."""
    stripped = map(str.strip, path.read_text(encoding="utf-8").splitlines())
    return [line for line in stripped if line and not line.startswith("#")]


def instructions(path: Path = ROOT / "Dockerfile") -> list[tuple[str, str]]:
    """Each instruction with its arguments on one line."""
    text = "\n".join(line for line in path.read_text(encoding="utf-8").splitlines() if not line.startswith("#"))
    whole = text.replace("\\\n", " ")
    parted = (line.partition(" ") for line in whole.splitlines() if line)
    return [(word, " ".join(rest.split())) for word, _, rest in parted]


def arguments(instruction: str) -> list[str]:
    return [rest for word, rest in instructions() if word == instruction]


def test_the_container_copies_what_exists():
    copied = [source for rest in arguments("COPY") for source in shlex.split(rest)[:-1]]
    assert {"pyproject.toml", "constraints.txt", "."} <= set(copied)
    for source in copied:
        assert (ROOT / source).exists(), source


def test_what_the_metadata_names_is_there_when_the_package_is_installed():
    """pip reads the files that pyproject.toml names."""
    early = " ".join(arguments("COPY")[:-1]).split()
    assert {PROJECT["readme"], *PROJECT["license-files"]} <= set(early)


def test_the_container_installs_extras_that_exist():
    (installed,) = (rest for rest in arguments("RUN") if "pip install" in rest)
    (extras,) = re.findall(r"\.\[([\w,]+)\]", installed)
    assert set(extras.split(",")) <= PROJECT["optional-dependencies"].keys()
    assert "constraints.txt" in installed


def test_the_container_makes_the_stamps_that_make_looks_for():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    (installed,) = (rest for rest in arguments("RUN") if "pip install" in rest)
    stamps = re.findall(r"\$VENV/(\.\w+)", installed)
    assert len(stamps) == 2
    for stamp in stamps:
        assert f"$(VENV)/{stamp}" in makefile


@pytest.mark.skipif(shutil.which("make") is None, reason="there is no make")
def test_the_container_starts_a_target():
    (command,) = arguments("CMD")
    program, *rest = yaml.safe_load(command)
    assert program == "make"
    done = subprocess.run([program, "-n", *rest], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_there_is_one_build_argument_and_it_is_used():
    (declared,) = arguments("ARG")
    name, _, default = declared.partition("=")
    assert (name, default) == ("TORCH", "cpu")
    assert any(f"${name}" in rest for rest in arguments("RUN"))


@pytest.mark.parametrize("folder", [".venv", ".work", "outputs", ".tracking"])
def test_results_and_environments_stay_out_of_the_image(folder):
    assert folder in lines(ROOT / ".dockerignore")


def test_git_goes_into_the_image():
    """DVC refuses to work without it."""
    assert ".git" not in lines(ROOT / ".dockerignore")


def test_the_faults_of_the_front_page_are_those_of_the_report():
    rows = [line.split(" | ") for line in lines(ROOT / "reports/faults.md") if line.startswith("| ")]
    counted = {row[0].removeprefix("| "): row[1:3] for row in rows if row[1].isdigit()}
    table = [line for line in lines(ROOT / "README.md") if line.startswith(("| [Faults]", "| tried, lost"))]
    names, shown = ([cell.strip() for cell in line.split("|")[2:-1]] for line in table)
    assert {name: pair.split(", ") for name, pair in zip(names, shown, strict=True)} == counted
