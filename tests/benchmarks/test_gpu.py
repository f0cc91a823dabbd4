"""The measurements for a GPU: their targets, and that all of them run to the end on any device."""

import json
import sys
import time
from pathlib import Path

import pytest

from benchmarks import gpu
from benchmarks.gpu import PARTS, TARGETS, Place, main, targets


def test_what_was_measured_is_compared_with_its_target(tmp_path: Path):
    rows = Place(tmp_path, tmp_path, smoke=True).rows
    for name, ms, memory in (("sct", 21.0, 16.0), ("edm", 10.0, 10.0), ("ect", 13.9, 10.0)):  # in any order
        rows.add("steps ddpmpp", method=name, ms=ms, MiB=memory, share=0.44)
    rows.add("steps teacher", method="sct", ms=1.0, MiB=1.0, share=0.3)  # whose EDM step failed
    rows.add("stages", stage="train", **{"over bare": 0.96})
    for share in (0.99, 0.8):
        rows.add("samples", share=share)
    found = {row["target"]: (row["measured"], row["met"]) for row in targets(rows)}
    assert found["ddpmpp: ECT over EDM"] == (pytest.approx(1.39), "yes")
    assert found["ddpmpp: sCT over EDM"] == (2.1, "no")
    assert found["ddpmpp: memory of sCT over EDM"] == (1.6, "yes")
    assert found["ddpmpp: share of the matrix peak"] == (0.44, "no")
    assert found["images/s of the stage train over the bare step"] == (0.96, "yes")
    assert found["images/s of evaluation over the bare sampler"] == (0.8, "no")
    assert found["teacher: sCT over EDM"] == ("-", "not measured")


def test_the_data_are_asked_for_before_anything_is_done(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit):
        main(["--out", str(tmp_path), "--data", str(tmp_path / "nowhere.tar.xz")])
    assert "expected the archive of workloads/cifar10-jpeg-gpu.yaml, got" in capsys.readouterr().err


PROGRAM = """
import sys, time
name, log = sys.argv[1:]
if name == "compiles":
    time.sleep(60)
def note(what):
    with open(log, "a") as file:
        file.write(f"{what} {name}\\n")
if name == "broken":
    sys.exit(3)
time.sleep(0.3 if name == "slow" else 0)
note("ready")
print("another line")
print("ready to measure: waiting for a line", flush=True)
sys.stdin.readline()
note("begins")
time.sleep(60 if name == "hangs" else 0.1)
note("ends")
"""


def test_parts_get_ready_side_by_side_and_measure_one_after_the_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    place, log = Place(tmp_path, tmp_path, smoke=True), tmp_path / "order"
    monkeypatch.setattr(gpu, "command", lambda _, part: [sys.executable, "-c", PROGRAM, part, str(log)])
    start = time.monotonic()
    parts = ["slow", "broken", "compiles", "quick", "hangs"]
    found = dict(gpu.side_by_side(place, parts, start + 6, 3))
    assert time.monotonic() - start < 10
    assert found == {
        "slow": "", "broken": "ended with 3, see log.txt", "compiles": "was not ready to measure after 3 s",
        "quick": "", "hangs": "the time was up",
    }  # fmt: skip
    said = log.read_text().splitlines()
    assert sorted(said[:3]) == ["ready hangs", "ready quick", "ready slow"]
    assert said[3:] == ["begins slow", "ends slow", "begins quick", "ends quick", "begins hangs"]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_all_of_it_runs_to_the_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    main(["--smoke", "--together", "2", "--out", str(tmp_path)])
    said = capsys.readouterr().out
    assert [line.split(":")[0] for line in said.splitlines() if line.endswith(" s left")] == list(PARTS)
    report = (tmp_path / "targets.md").read_text()
    assert report.partition("## Left out")[2].strip() == ""
    on_cpu = [line for line in report.splitlines() if "not measured" in line]
    assert [line for line in on_cpu if "memory" not in line] == []
    assert report.count("| at most ") + report.count("| at least ") == len(TARGETS)
    assert main(["--smoke", "--out", str(tmp_path), "--train", "edm", "ect"]) == 0
    for run in ("edm", "ect"):
        records = json.loads((tmp_path / f"reports/cifar10-jpeg-gpu/metrics/{run}.json").read_text())
        assert records["records"]


@pytest.mark.slow
def test_what_has_no_time_left_is_named(tmp_path: Path):
    main(["--smoke", "--out", str(tmp_path), "--seconds", "0"])
    report = (tmp_path / "targets.md").read_text()
    assert all(f"- {part}: no time was left" in report for part in PARTS)
