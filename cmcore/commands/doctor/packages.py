"""Python, the code that runs, and the packages against their pins."""

import importlib.metadata
import re
import sys
import tomllib
from pathlib import Path

from cmcore.closure import ROOT
from cmcore.commands.doctor.finding import FAIL, OK, WARN, Finding

SUPPORTED = ((3, 11), (3, 14))  # from, below
INSTALL = "pip install -c constraints.txt -e '.[pipeline]'"
SHOWN = 4  # packages named in a line


def normal(name: str) -> str:
    """A package's name as the index compares it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def pins(root: Path) -> dict[str, str]:
    """The versions of constraints.txt."""
    lines = (root / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pairs = (line.partition("#")[0].split("==") for line in lines if "==" in line)
    return {normal(name.strip()): version.strip() for name, version in pairs}


def needed(root: Path) -> list[str]:
    """The packages that pyproject.toml asks for to run the pipeline."""
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = [*project["dependencies"], *project["optional-dependencies"]["pipeline"]]
    return [normal(re.split(r"[^A-Za-z0-9._-]", line, maxsplit=1)[0]) for line in wanted]


def version(name: str) -> str:
    """The installed version without a build's own mark, as in 2.6.0+cpu; empty where there is none."""
    try:
        return importlib.metadata.version(name).partition("+")[0]
    except importlib.metadata.PackageNotFoundError:
        return ""


def some(names: list[str]) -> str:
    """The first of them."""
    return ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")


def check_python() -> Finding:
    """The interpreter."""
    text = f"{'.'.join(map(str, sys.version_info[:3]))}, {sys.prefix}"
    if not SUPPORTED[0] <= sys.version_info[:2] < SUPPORTED[1]:
        return Finding("python", FAIL, text, "3.11 to 3.13 are supported: make PYTHON=/path/to/python3.11")
    return Finding("python", OK, text)


def check_code(root: Path) -> Finding:
    """Whether the commands and the stages are of one checkout."""
    if root.resolve() != ROOT.resolve():
        return Finding("code", FAIL, f"this cmlab belongs to {ROOT}", f"run {root / '.venv/bin/cmlab'}")
    return Finding("code", OK, str(root))


def check_packages(root: Path) -> Finding:
    """The needed packages, and their versions against constraints.txt."""
    wanted, pinned = needed(root), pins(root)
    if missing := [name for name in wanted if not version(name)]:
        return Finding("packages", FAIL, f"missing: {some(missing)}", INSTALL)
    present = {name: there for name in pinned if (there := version(name))}
    if other := [f"{name} {there} (pinned {pinned[name]})" for name, there in present.items() if there != pinned[name]]:
        remedy = f"numbers may differ in their last digits: {INSTALL}"
        return Finding("packages", WARN, f"other versions than pinned: {some(other)}", remedy)
    return Finding("packages", OK, f"{len(present)} of {len(pinned)} pinned ones are here, in their versions")
