"""Links between the pages, and files that the pages name."""

import re
import subprocess
from pathlib import Path

import pytest
from pages import PAGES, README, anchors, links, named_files, prose, text

from cmcore.closure import ROOT

LINKS = [(page, *link) for page in PAGES for link in links(page)]
NAMED = [(page, name) for page in PAGES for name in named_files(page)]


def label(value: object) -> str:
    return value.name if isinstance(value, Path) else str(value)


def in_git(path: str) -> bool:
    done = subprocess.run(["git", "-C", str(ROOT), "ls-files", "--", path], capture_output=True, text=True, check=False)
    return done.returncode == 0 and bool(done.stdout.strip())


@pytest.mark.parametrize(("page", "file", "anchor"), LINKS, ids=label)
def test_a_link_leads_somewhere(page, file, anchor):
    target = (page.parent / file).resolve() if file else page
    assert target.exists(), f"{page.name}: {file}"
    assert not anchor or anchor in anchors(target), f"{page.name}: {file}#{anchor}"


@pytest.mark.parametrize(("page", "name"), NAMED, ids=label)
def test_a_file_that_is_named_exists(page, name):
    assert (ROOT / name).exists(), f"{page.name}: {name}"
    if (ROOT / ".git").exists():
        assert in_git(name), f"{page.name}: {name} is not in git"


def test_there_are_links_of_every_kind():
    files = [file for page, file, _ in LINKS if page == README]
    assert any(file.endswith(".png") for file in files)
    assert any(file.endswith(".html") for file in files)
    assert any(file.startswith("docs/") for file in files)
    assert any(anchor for _, _, anchor in LINKS)
    assert NAMED


def test_readme_links_every_page():
    linked = {(README.parent / file).resolve() for page, file, _ in LINKS if page == README}
    included = {ROOT / "docs/index.md", ROOT / "docs/add-a-method.md"}  # contents, and a section of CONTRIBUTING.md
    assert set(PAGES) - {README} - included <= linked


def test_readme_is_short():
    """Without the table that `cmlab readme` copies, which has a line for every row of every run."""
    said = re.sub(r"<!-- results:start -->.*?<!-- results:end -->", "", text(README), flags=re.DOTALL)
    assert len(said.splitlines()) <= 150


def test_measured_digits_stand_in_reports():
    """Outside the table that `cmlab readme` copies, README states no times, shares or factors."""
    said = re.sub(r"<!-- results:start -->.*?<!-- results:end -->", "", prose(README), flags=re.DOTALL)
    assert not re.findall(r"\d[\d.,]*\s?(?:%|ms\b|s\b|min\b|seconds|minutes|hours|times)", said)
