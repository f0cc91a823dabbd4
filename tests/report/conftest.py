"""A clearly synthetic workload: invented numbers and drawn images in the files that the stages write."""

import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from cmcore.evaluate.records import MetricRecord, Provenance
from cmcore.evaluate.timing import RowTime, SamplingTimes
from cmcore.report.readers import Inputs
from cmcore.train.timing import TrainingTime

RUNS = ("edm", "cd", "ct", "ict", "ect", "sct", "scd")
FD = {"edm": 1.9, "cd": 6.1, "ct": 14.8, "ict": 7.3, "ect": 4.4, "sct": 5.2, "scd": 5.0}
EXTRACTOR, DIGEST, REFERENCE = "synthetic_cnn_0a1b2c3d", "0a1b2c3d" + "0" * 56, "feed" * 16
COMMIT = "c0ffee" * 6 + "beef"
SIDE, COLUMNS, TOTAL = 8, 12, 150_000


def provenance(run: str, nfe: int, **changes: object) -> Provenance:
    few = {1: (20.0,), 2: (20.0, 0.8)}.get(nfe, ())
    values = {
        "workload": "synthetic",
        "run": run,
        "method": run,
        "fingerprint": run * 8,
        "sampler": "multistep" if few else "heun",
        "nfe": nfe,
        "ema": "slow",
        "images": TOTAL,
        "seed": 1,
        "levels": few,
        "extractor": EXTRACTOR,
        "extractor_digest": DIGEST,
        "reference_digest": REFERENCE,
        "reference_count": 1797,
        "samples": 5000,
    }
    return Provenance(**{**values, **changes})


def record(
    metric: str, value: float, source: Provenance, spread: float | None = None, of: str = "bootstrap"
) -> MetricRecord:
    return MetricRecord(
        metric=metric, value=value, spread=value / 40 if spread is None else spread, spread_of=of, provenance=source
    )


def measured(run: str, nfe: int, fd: float) -> list[MetricRecord]:
    source = provenance(run, nfe)
    records = [
        record("fd", fd, source),
        record("kid", fd / 900, source, of="subsets"),
        record("precision", 0.95 - fd / 60, source),
        record("recall", 0.9 - fd / 40, source),
        record("score", 9.5 - fd / 10, source, of="splits"),
        record("fd_infinity", fd - 0.3, source, of="jackknife"),
        record("coverage", 0.97 - fd / 50, source, of="images"),
        record("authenticity", 0.4 + fd / 90, source, of="images"),
        record("memorised", 0.001, provenance(run, nfe, extractor="pixels", extractor_digest="pixels", samples=1000)),
    ]
    if run not in ("edm", "ct", "ict") and nfe == 1:
        pixels = provenance(run, nfe, extractor="pixels", extractor_digest="pixels", samples=1000)
        records.append(record("endpoint_rmse", 0.1 + fd / 80, pixels, of="images"))
    return records


def digit(noise: np.random.Generator, blur: float) -> np.ndarray:
    y, x = np.mgrid[0:SIDE, 0:SIDE]
    ring = np.exp(-((np.hypot(x - 3.5, (y - 3.5) * 0.8) - 2.2) ** 2) / 0.7)
    return np.clip(255 * ring + blur * noise.normal(size=(SIDE, SIDE)), 0, 255).astype(np.uint8)[None]


def write_run(root: Path, run: str, channels: int = 1) -> None:
    steps = {1: 9 * FD[run], 11: 3 * FD[run], 35: FD[run]} if run == "edm" else {1: FD[run], 2: 0.72 * FD[run]}
    scan = [] if run in ("edm", "ct") else [
        record(
            "fd",
            FD[run] * (0.72 + 0.2 * math.log(level / 0.8) ** 2),
            provenance(run, 2, levels=(20.0, level), samples=2000),
        )
        for level in (0.2, 0.4, 0.8, 1.6, 3.2)
    ]  # fmt: skip
    snapshots = [
        record("fd", factor * FD[run] * (TOTAL / images) ** 0.7, provenance(run, nfe, images=images, samples=2000))
        for images in range(TOTAL // 5, TOTAL + 1, TOTAL // 5)
        for nfe, factor in (((35, 1.0),) if run == "edm" else ((1, 1.0), (2, 0.72)))
    ]
    facts = {
        "workload": "synthetic",
        "run": run,
        "method": run,
        "init": "random" if run in ("edm", "ct", "ict") else "edm",
        "parameters": 412_345,
        "images": TOTAL,
        "ema": "slow",
        "seed": 1,
        "conditional": False,
        "fid_absent": "the Inception weights are not present (eval.inception.path is empty)",
        "records": [one.to_json() for nfe, fd in steps.items() for one in measured(run, nfe, fd)],
        "scan": [one.to_json() for one in scan],
        "snapshots": [one.to_json() for one in snapshots],
    }
    (root / "metrics").mkdir(parents=True, exist_ok=True)
    (root / "metrics" / f"{run}.json").write_text(json.dumps(facts))
    noise = np.random.default_rng(RUNS.index(run))
    lines = [
        {
            "images": images,
            "loss": FD[run] * (1 + 4 * math.exp(-images / 3e4)) * math.exp(0.2 * noise.normal()) / 100,
            "lr": 1e-4,
        }
        for images in range(1000, TOTAL + 1, 1000)
    ]
    (root / "runs" / run).mkdir(parents=True)
    (root / "runs" / run / "history.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (root / "times").mkdir(exist_ok=True)
    TrainingTime(seconds=60.0 * (RUNS.index(run) + 1), device="Abacus, 1 thread", code=COMMIT).write(
        root / "times" / f"{run}.json"
    )
    rows = tuple(
        RowTime(nfe=n, sampler="multistep", latency=n / 1000, images_per_second=9e3 / n, batch=500) for n in steps
    )
    (root / "times" / "sampling").mkdir(exist_ok=True)
    times = SamplingTimes(device="Abacus, 1 thread", rows=rows)
    (root / "times" / "sampling" / f"{run}.json").write_text(json.dumps(times.to_json()))
    arrays = {
        f"nfe_{nfe}": np.stack([digit(noise, 4 * fd) for _ in range(COLUMNS)]).repeat(channels, axis=1)
        for nfe, fd in steps.items()
    }
    arrays |= {f"nearest_{name}": images[::-1] for name, images in arrays.items()}
    if run == "ect":
        arrays["endpoints"] = arrays["nfe_2"]
    (root / "samples").mkdir(exist_ok=True)
    np.savez(root / "samples" / f"{run}.npz", **arrays)


@pytest.fixture(scope="session")
def synthetic(tmp_path_factory: pytest.TempPathFactory) -> Inputs:
    """All files of the synthetic workload."""
    return write_workload(tmp_path_factory.mktemp("synthetic"))


def write_workload(root: Path, runs: tuple[str, ...] = RUNS) -> Inputs:
    for run in runs:
        write_run(root, run)
    gaussian = provenance("gaussian_pixels", 0, method="gaussian_pixels", sampler="gaussian_pixels", ema="none")
    half = provenance("half", 0, method="half", sampler="half", ema="none", reference_digest="ha1f" * 16, samples=898)
    reference = {
        "workload": "synthetic",
        "data": {"digest": REFERENCE, "count": 1797, "classes": 10},
        "extractor": {
            "name": EXTRACTOR,
            "digest": DIGEST,
            "dim": 64,
            "kind": "classifier",
            "config": {},
            "accuracy": {"held_out": 0.983, "held_out_images": 360},
        },
        "halves": 0.41,
        "baseline": [record("fd", 44.0, gaussian).to_json(), record("kid", 0.061, gaussian).to_json()],
        "anchors": [record("coverage", 0.98, half).to_json(), record("authenticity", 0.45, half).to_json()],
    }
    (root / "reference.json").write_text(json.dumps(reference))
    return Inputs(
        workload="synthetic",
        metrics=root / "metrics",
        reference=root / "reference.json",
        runs=root / "runs",
        samples=root / "samples",
        times=root / "times",
        sampling=root / "times" / "sampling",
        order=RUNS,
        data="synthetic rings, invented numbers",
    )


@pytest.fixture
def workload(tmp_path: Path) -> Callable[..., Inputs]:
    """Writes a fresh synthetic workload that a test may damage."""
    return lambda *runs: write_workload(tmp_path / "workload", runs or ("edm", "ect"))
