"""Methods that use all of the protocol, from the parameter file to the table: one file and one entry of `runs` each."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from toy_methods import TOYS

from cmcore.closure import ROOT

pytest.importorskip("matplotlib")
pytestmark = pytest.mark.timeout(300)

PARAMS = """
workload: toys
data: {source: digits, resolution: 8, channels: 1}
diffusion: {sigma_max: 20.0}
net: {kind: mlp, hidden: 16, blocks: 1}
train:
  {images: 1024, batch: 64, lr: 1e-3, log_images: 256, snapshots: 2, ema: {ema: {half_life: 128.0}}}
runs:
  edm: {method: edm, init: random, teacher: none}
  ect: {method: ect, init: edm, teacher: none}
  critic: {method: toy_critic, init: edm, teacher: none, train: {players: {critic: {lr: 1e-2}}}}
  halving: {method: toy_halving, init: edm, teacher: none}
  pupil: {method: toy_pupil, init: edm, teacher: ect}
  groups: {method: toy_groups, init: random, teacher: none, train: {micro_batch: 32}}
  map: {method: toy_map, init: edm, teacher: none}
eval:
  {samples: 64, batch: 64, scan: [1.0], scan_samples: 64, snapshot_samples: 64, endpoints: 32, teacher_steps: 3,
   kid_size: 16, kid_subsets: 2, bootstrap: 2, neighbours: 2, score_splits: 2,
   reference: {images: 1024, width: 4, features: 8}}
compute: {backend: inline, threads: 1}
tracking: {mlflow: false}
"""
DRIVER = """
from stages import evaluate, prepare, reference, tabulate, train
prepare.main()
reference.main()
for name in ("edm", "ect", "critic", "halving", "pupil", "groups", "map"):
    train.main(name)
    evaluate.main(name)
tabulate.main()
"""


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the project with the toys among its methods, after all stages."""
    folder = tmp_path_factory.mktemp("toys") / "project"
    for name in ("cmcore", "stages"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for toy in TOYS.glob("toy_*.py"):
        shutil.copy(toy, folder / "cmcore" / "methods" / toy.name)
    (folder / "params.yaml").write_text(PARAMS)
    environment = {**os.environ, "PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", DRIVER], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def records(project: Path, run: str) -> list[dict]:
    return json.loads((project / f"reports/toys/metrics/{run}.json").read_text())["records"]


def rows(project: Path, run: str) -> list[tuple[int, str]]:
    return sorted(
        {(r["provenance"]["nfe"], r["provenance"]["sampler"]) for r in records(project, run) if r["metric"] == "fd"}
    )


def test_every_toy_is_in_the_table(project: Path):
    table = (project / "reports/toys/tables/comparison.md").read_text()
    for run in ("critic", "halving", "pupil", "groups", "map"):
        assert f"| {run} |" in table


def test_rows_are_those_of_the_methods_own_samplers(project: Path):
    assert rows(project, "map") == [(1, "jump"), (2, "high"), (2, "low")]
    assert rows(project, "halving") == [(1, "euler"), (2, "euler"), (4, "euler")]
    table = (project / "reports/toys/tables/comparison.md").read_text()
    assert "2 (high)" in table
    assert "2 (low)" in table


def test_the_players_of_a_run_are_in_its_history(project: Path):
    first = json.loads((project / "outputs/toys/runs/critic/history.jsonl").read_text().splitlines()[0])
    assert {"loss", "critic.0/loss", "critic.1/loss", "critic.0/lr"} <= first.keys()


def test_end_points_are_those_of_the_diffusion_run_it_comes_from(project: Path):
    """The teacher of `pupil` is a few-step model, so its end points are those of the run it starts from."""
    meta = {r["metric"] for r in records(project, "pupil")}
    assert "endpoint_rmse" in meta
    assert "endpoint_rmse" not in {r["metric"] for r in records(project, "halving")}


def test_weights_say_what_their_network_is_told(project: Path):
    sys_path = project / "outputs/toys/runs/map/weights.safetensors"
    from cmcore.train.checkpoint import header

    assert header(sys_path)["inputs"] == [{"name": "s", "kind": "time", "neutral": 1.0}]
