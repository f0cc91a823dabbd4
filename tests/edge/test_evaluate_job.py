"""An evaluation by several workers on a real Ray, and one that is killed: the same record, byte for byte."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import evaluation_driver
import pytest
from every_run import every_run, make_inputs

from cmcore.assemble.training import train_run
from cmcore.closure import ROOT
from cmcore.data.images import ImageData
from cmcore.evaluate.reference import reference
from cmcore.tracking.base import Null

pytest.importorskip("ray")
pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("inputs")
    found = make_inputs(folder)
    final = train_run(
        every_run().run("ect"), found["ect"], folder / "work", tracker=Null(), on_progress=lambda *_: None
    )
    final.rename(folder / "ect")
    found["ect"].init.rename(folder / "edm.safetensors")
    reference(ImageData.open(folder / "data"), evaluation_driver.CONFIG, "tiny", folder / "reference")
    return folder


@pytest.fixture(scope="module")
def alone(inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    return evaluation_driver.record(inputs, tmp_path_factory.mktemp("alone"), workers=1)


def start(*arguments: str) -> subprocess.Popen[bytes]:
    paths = os.pathsep.join([str(ROOT), str(ROOT / "tests/support")])
    command = [sys.executable, str(ROOT / "tests/support/evaluation_driver.py"), *arguments]
    return subprocess.Popen(command, env={**os.environ, "PYTHONPATH": paths, "PYTHONDONTWRITEBYTECODE": "1"})


def shards(work: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in work.rglob("*.safetensors")}


def test_two_workers_on_ray_make_the_record_of_one(inputs: Path, alone: str, tmp_path: Path):
    assert evaluation_driver.record(inputs, tmp_path, workers=2) == alone


def test_an_evaluation_killed_again_and_again_makes_the_same_record(inputs: Path, alone: str, tmp_path: Path):
    work, record = tmp_path / "work", tmp_path / "record.json"
    total, kills, kept = 2 * 2 * 10 + 1 + 3, 0, dict[Path, int]()
    while kills < 3:
        process = start(str(inputs), str(work), str(record), "1")
        before, wanted = len(shards(work)), 5 + 3 * kills
        while len(shards(work)) < before + wanted and process.poll() is None:
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL, "it was to be killed before its end"
        kills += 1
        after = shards(work)
        assert kept.items() <= after.items(), "a finished shard is never done again"
        assert before < len(after) < total
        kept = after
    process = start(str(inputs), str(work), str(record), "1")
    assert process.wait() == 0
    assert record.read_text() == alone
    assert kept.items() <= shards(work).items()
    assert len(shards(work)) == total
