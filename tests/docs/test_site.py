"""The pages as a site, as `make docs` builds it."""

import re
import subprocess
import sys

import pytest

from cmcore.closure import ROOT

pytest.importorskip("mkdocs")


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    # Not --quiet: it would hide warnings from --strict as well.
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def test_every_page_is_in_the_site(site):
    assert {page.stem for page in (ROOT / "docs").glob("*.md")} <= {page.stem for page in site.glob("*.html")}


def test_the_worked_example_is_in_the_site(site):
    """`pymdownx.snippets` takes it from CONTRIBUTING.md."""
    page = (site / "add-a-method.html").read_text(encoding="utf-8")
    assert "cmcore/methods/linear_gap.py" in page
    assert "PseudoHuber" in page


def test_the_site_loads_nothing_from_elsewhere(site):
    """Scripts, styles, fonts and pictures; links that a reader follows may lead anywhere."""
    loading = re.compile(r"<(?:script|img|iframe|source)\b[^>]*\bsrc=[\"']?(?:https?:)?//|<link\b[^>]*")
    for page in site.glob("*.html"):
        for tag in loading.findall(page.read_text(encoding="utf-8")):
            assert tag.startswith("<link"), f"{page.name}: {tag}"
            assert "//" not in tag or "canonical" in tag, f"{page.name}: {tag}"
    for sheet in site.rglob("*.css"):
        assert not re.search(r"(?:url\(|@import )[\"']?(?:https?:)?//", sheet.read_text(encoding="utf-8")), sheet.name
