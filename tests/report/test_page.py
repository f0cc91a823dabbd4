"""The page in a browser: sorting, choice, charts, provenance and enlarging work, on a desk and on a phone."""

import base64
import io
import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cmcore.report.page_data import chain, page_data
from cmcore.report.published import families
from cmcore.report.readers import Inputs, Operations, read_reference, read_runs
from cmcore.report.strips import strips
from cmcore.report.tabulate import tabulate

BROWSER = next(
    (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), ""
)
AXE = os.environ.get("CMLAB_AXE", "node_modules/axe-core/axe.min.js")  # `npm install axe-core` puts it there
METHODS = Path(__file__).resolve().parents[2] / "cmcore/methods"
needs_browser = pytest.mark.skipif(not BROWSER, reason="no chromium, chromium-browser or google-chrome in PATH")

# ruff: noqa: E501 (the script below)
CHECKS = """
<script>addEventListener("load", async () => {
  const said = {errors: window.problems}, one = s => document.querySelector(s), all = s => [...document.querySelectorAll(s)];
  const names = () => all("#table-headline tbody tr").map(row => row.cells[0].textContent);
  said.first = names();
  const sort = all("#table-headline thead button")[0];
  sort.click(); said.sorted = names(); said.aria = sort.parentNode.getAttribute("aria-sort");
  sort.click(); said.turned = names();
  one('#table-headline tr[data-run="ect"] td[data-source] button').click();
  said.provenance = [one("#more").open, one("#more-body").textContent];
  one("#more-close").click();
  said.charts = all("#charts svg.chart").length;
  said.labels = all("#charts svg.chart")[0].getAttribute("aria-label");
  all("fieldset button").find(b => b.textContent === "None").click();
  said.none = all("#charts svg.chart").length;
  one("fieldset .bar input").click();
  said.hidden = all("#table-headline tbody tr").filter(row => row.offsetParent).length;
  all("fieldset button").find(b => b.textContent === "All").click();
  said.shown = all("#table-headline tbody tr").filter(row => row.offsetParent).length;
  one(".strip button").click(); said.enlarged = one("#more canvas").width; one("#more-close").click();
  said.unnamed = all("button, input, select, img, dialog, svg[role=img]").filter(e => !(e.textContent.trim() || e.alt || e.querySelector('img[alt]')
    || e.getAttribute("aria-label") || e.getAttribute("aria-labelledby") || (e.labels && e.labels.length && e.labels[0].textContent.trim()))).map(e => e.outerHTML.slice(0, 80));
  said.heads = all("h1, h2, h3").filter(e => e.offsetParent).map(e => +e.tagName[1]);
  said.wide = document.documentElement.scrollWidth - document.documentElement.clientWidth;
  if (window.axe) said.axe = (await axe.run()).violations.map(v => [v.id, v.nodes.length, v.nodes[0].html.slice(0, 120), v.nodes[0].failureSummary.slice(0, 200)]);
  document.body.replaceChildren(Object.assign(document.createElement("pre"), {id: "said", textContent: btoa(unescape(encodeURIComponent(JSON.stringify(said))))}));
})</script>
"""


def answers(page: Path, folder: Path, width: int, *, dark: bool = False, axe: str = "") -> dict:
    """What the checks say in a window of `width` pixels."""
    text = page.read_text(encoding="utf-8")
    start = "<script>window.problems = []; addEventListener('error', e => problems.push(e.message))</script>"
    script = f"<script>{axe}</script>" if axe else ""
    checked = folder / "checked.html"
    checked.write_text(text.replace("<head>", f"<head>{start}").replace("</body>", script + CHECKS + "</body>"))
    flags = [
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--virtual-time-budget=20000",
        f"--user-data-dir={folder}/user",
    ]
    flags += ["--force-dark-mode", "--blink-settings=preferredColorScheme=0"] if dark else []
    command = [BROWSER, *flags, f"--window-size={width},1200", "--dump-dom", checked.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=True)
    found = re.search(r'<pre id="said">([^<]*)</pre>', done.stdout)
    assert found, f"the checks did not end: {done.stderr[-500:]}"
    return json.loads(base64.b64decode(found.group(1)))


@pytest.fixture(scope="module")
def page(synthetic: Inputs, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("page")
    tabulate(synthetic, out)
    return out / "index.html"


@needs_browser
@pytest.mark.parametrize(("width", "dark"), [(1280, False), (500, True)])
def test_the_page_works(page: Path, tmp_path: Path, width: int, dark: bool) -> None:
    axe = Path(AXE).read_text(encoding="utf-8") if Path(AXE).is_file() else ""
    said = answers(page, tmp_path, width, dark=dark, axe=axe)
    assert said["errors"] == []
    assert said["first"] == ["ect", "scd", "sct", "cd", "ict", "ct", "edm"]
    assert said["sorted"] == sorted(said["first"])
    assert said["turned"] == sorted(said["first"], reverse=True)
    assert said["aria"] == "ascending"
    opened, text = said["provenance"]
    assert opened
    assert all(
        part in text
        for part in ("synthetic_cnn_0a1b2c3d", "feed" * 16, "5000", "EMA slow", "Abacus, 1 thread", "ect" * 8)
    )
    assert said["charts"] == 4 + 7, "two qualities, snapshots, levels, and a loss for each run"
    assert "CD" in said["labels"]
    assert (said["none"], said["hidden"], said["shown"]) == (0, 0, 7)
    assert said["enlarged"] == 8 * (64 + 2)
    assert said["unnamed"] == []
    assert all(after <= before + 1 for before, after in zip(said["heads"], said["heads"][1:], strict=False))
    assert said["wide"] <= 0, "nothing is wider than the window"
    assert said.get("axe", []) == []


def test_strips_hold_the_images(synthetic: Inputs) -> None:
    runs = read_runs(synthetic)
    found = strips(runs, 10**6)
    assert [strip.title for strip in found][:2] == ["teacher's ODE", "EDM"]
    one = next(strip for strip in found if (strip.run, strip.nfe) == ("ect", 2))
    (folder,) = [run for run in runs if run.facts.run == "ect"]
    data = base64.b64decode(one.source.partition(",")[2])
    assert folder.samples is not None
    with Image.open(io.BytesIO(data)) as picture:
        shown = np.asarray(picture)
    images = folder.samples["2 NFE"]
    assert np.array_equal(shown, np.concatenate([image[0] for image in images], axis=1))


def test_the_cost_of_a_run_counts_what_it_starts_from(synthetic: Inputs) -> None:
    runs = read_runs(synthetic)
    data = page_data(
        runs,
        read_reference(synthetic.reference),
        {"edm": Operations(training=5.0, evaluation=1.0), "ect": Operations(training=2.0, evaluation=4.0)},
    )
    by_name = {run["id"]: run["cost"] for run in data["runs"]}
    assert by_name["ect"]["seconds"] == [300.0, 360.0]
    assert by_name["ect"]["operations"] == [2.0, 7.0]
    assert {run["id"]: run["evaluation"] for run in data["runs"]} == {
        **dict.fromkeys(by_name), "edm": 1.0, "ect": 4.0
    }  # fmt: skip
    assert by_name["ict"]["images"] == [150_000, 150_000]
    assert by_name["cd"]["operations"] == [None, None]
    named = {run.facts.run: run for run in runs}
    assert chain(named["ect"], named, {"ect": 1.0}) is None, "what it starts from is not known"


def test_every_method_has_a_family() -> None:
    methods = {file.stem for file in METHODS.glob("*.py")} - {"__init__", "base"}
    assert methods - set(families()) == set()
