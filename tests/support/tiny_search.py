"""A tiny project with searches, its data and its reference: what tests of searches start from."""

import copy
from pathlib import Path
from typing import Any

import numpy as np

from cmcore.assemble.models import save_empty
from cmcore.assemble.project import parse_project
from cmcore.assemble.training import WEIGHTS, Inputs, train_run
from cmcore.config import merge
from cmcore.data.images import ImageData
from cmcore.data.sources.prepare import prepare
from cmcore.evaluate.reference import reference
from cmcore.search.entries import searches
from cmcore.search.search import Job, search_fingerprint
from cmcore.tracking.base import Null

PARAMS: dict[str, Any] = {
    "workload": "tiny",
    "data": {"source": "array", "path": "images.npy", "resolution": 4, "channels": 1},
    "diffusion": {"sigma_max": 10.0},
    "net": {"kind": "mlp", "hidden": 8, "blocks": 1},
    "train": {
        "images": 1024,
        "batch": 16,
        "lr": 1e-3,
        "ema": {"ema": {"half_life": 200.0}},
        "eval_ema": "ema",
        "snapshots": 1,
        "log_images": 256,
        "checkpoint_seconds": 0,
    },
    "runs": {
        "edm": {"method": "edm", "init": "random", "teacher": "none"},
        "ect": {
            "method": "ect",
            "init": "edm",
            "teacher": "none",
            "options": {"stages": 2},
            "sample": {"two_step": 0.8},
        },
        "sct": {"method": "sct", "init": "edm", "teacher": "none", "options": {"warmup_images": 100}},
    },
    "eval": {
        "samples": 64,
        "scan_samples": 64,
        "snapshot_samples": 64,
        "batch": 32,
        "kid_size": 16,
        "kid_subsets": 2,
        "bootstrap": 2,
        "reference": {"images": 64, "width": 4, "features": 8},
    },
    "tune": {
        "schedule": {
            "base": "ect",
            "init": "edm",
            "teacher": "none",
            "space": {
                "options": {"q": {"uniform": [2.0, 8.0]}},
                "train": {"lr": {"loguniform": [3e-4, 3e-2]}, "ema": {"ema": {"half_life": {"loguniform": [50, 500]}}}},
            },
            "samples": 32,
            "images": 512,
            "trials": 4,
            "rungs": 2,
            "searcher": "random",
        },
        "widths": {
            "base": "ect",
            "init": "edm",
            "teacher": "none",
            "kind": "posthoc",
            "space": {"std": {"loguniform": [0.03, 0.25]}},
            "samples": 32,
            "snapshots": 4,
            "trials": 3,
            "confirm": [5],
        },
    },
}


def make_job(root: Path, name: str, **changes: Any) -> Job:
    """A job for a search of PARAMS with some fields changed; what it reads is made in `root` where it is not there."""
    params = merge(copy.deepcopy(PARAMS), {"tune": {name: changes}})
    project = parse_project(params)
    data, random, teacher = root / "data", root / "random.safetensors", root / "edm.safetensors"
    if not teacher.exists():
        images = np.random.default_rng(0).integers(0, 256, (64, 1, 4, 4), dtype=np.uint8)
        np.save(root / "images.npy", images)
        prepare(parse_project(merge(params, {"data": {"path": str(root / "images.npy")}})).sections.data, data)
        save_empty(random, "random")
        reference(ImageData.open(data), project.sections.eval, "tiny", root / "reference")
        final = train_run(
            project.run("edm"), Inputs(data, random, random), root / "edm", tracker=Null(), on_progress=lambda *_: None
        )
        (final / WEIGHTS).rename(teacher)
    inputs, config = Inputs(data, teacher, random), searches(project)[name]
    mark = search_fingerprint(project, config, inputs, root / "reference")
    return Job(project, name, config, inputs, root / "reference", root / f"{name}-{mark}")
