"""An imported network and a student of it through the whole pipeline, as DVC runs it."""

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from public_weights import nvlabs_pickle

from benchmarks.workspace import Workspace

NET = {
    "kind": "unet", "model_channels": 8, "channel_mult": [1, 2], "blocks": 1, "attention_resolutions": [8],
    "augment_dim": 9, "dropout": 0.0,
}  # fmt: skip


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """A project after `make repro`, whose teacher is a network pickle of NVlabs."""
    folder = tmp_path_factory.mktemp("imported") / "project"
    tiny = Path(__file__).parents[1] / "e2e/tiny.yaml"
    params: dict[str, Any] = yaml.safe_load(tiny.read_text(encoding="utf-8"))
    params |= {
        "data": {"source": "array", "path": "images.npy", "resolution": 16, "channels": 3},
        "net": NET,
        "compute": {"backend": "inline", "threads": 1},
        "tracking": {"mlflow": False},
    }
    params["train"] |= {"images": 64, "batch": 32, "log_images": 32}
    params["runs"]["edm"] |= {"weights": {"file": "edm.pkl"}}
    params["runs"]["ect"]["train"] = {"flip": True}
    space = Workspace(folder, params)
    np.save(folder / "images.npy", np.random.default_rng(0).integers(256, size=(96, 16, 16, 3), dtype=np.uint8))
    nvlabs_pickle(folder / "edm.pkl", "ddpmpp")
    space.call("cmcore.commands", "repro")
    return space


def test_both_are_measured_and_tabulated(repository: Workspace):
    reports = repository.folder / "reports/tiny"
    metrics = {run: json.loads((reports / f"metrics/{run}.json").read_text()) for run in ("edm", "ect")}
    assert metrics["edm"]["images"] == 0
    assert {record["provenance"]["nfe"] for record in metrics["edm"]["records"]} == {5}
    assert {record["provenance"]["nfe"] for record in metrics["ect"]["records"]} == {1, 2}
    with (reports / "tables/comparison.csv").open(newline="", encoding="utf-8") as file:
        rows = {row["run"]: row for row in csv.DictReader(file)}
    assert float(rows["ect"]["fd"]) > 0
    assert float(rows["ect"]["seconds"]) > 0
    assert rows["edm"]["seconds"] in ("", "–")


def test_nothing_is_left_to_do(repository: Workspace):
    # It ends with 1 where any of these has changed. Stage `code` always counts as changed.
    repository.call("dvc", "status", "--quiet", "prepare", "reference", "train", "evaluate", "tabulate")
