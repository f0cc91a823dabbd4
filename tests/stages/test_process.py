"""The life of a stage process."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from stages.__main__ import main

ROOT = Path(__file__).parents[2]
PROGRAM = "import time; from cmcore.pipeline.process import guarded; guarded('train x', lambda: time.sleep(60))"


def test_a_stage_whose_dvc_died_while_it_was_starting_ends() -> None:
    environment = {**os.environ, "DVC_STAGE": "train@x"}  # set by DVC alone, and there is none above this process
    ended = subprocess.run([sys.executable, "-c", PROGRAM], cwd=ROOT, env=environment, timeout=30, check=False)
    assert ended.returncode == 128 + signal.SIGTERM


@pytest.mark.parametrize(
    "arguments", [[], ["tarin"], ["train"], ["train", "ect", "edm"], ["prepare", "ect"], ["common", "x"]]
)
def test_wrong_arguments_get_the_usage(arguments) -> None:
    with pytest.raises(
        SystemExit, match=r"^usage: python -m stages \{code,prepare,reference,tabulate\}, or .*tune\} NAME$"
    ):
        main(arguments)
