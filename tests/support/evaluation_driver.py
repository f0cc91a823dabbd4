"""Evaluate a tiny run in a process of its own, which a test may kill, and write its record.

Usage: evaluation_driver.py <folder of the inputs> <work folder> <record> <workers>
"""

import json
import sys
from pathlib import Path

from every_run import every_run

from cmcore.edge.settings import ComputeConfig
from cmcore.evaluate.settings import ClassifierConfig, EvalConfig
from stages.evaluate_job import EvaluationFiles, evaluate

CONFIG = EvalConfig(
    samples=900, batch=30, shard=90, seed_ranges=2, teacher_steps=3, bootstrap=2, kid_subsets=2, kid_size=20,
    score_splits=2, endpoints=60, scan_samples=60, snapshot_samples=60,
    reference=ClassifierConfig(width=4, features=8, images=300, batch=50),
)  # fmt: skip


def record(inputs: Path, work: Path, workers: int) -> str:
    """The text of the run's metrics."""
    compute = ComputeConfig(backend="inline" if workers == 1 else "ray", threads=1, workers=workers)
    files = EvaluationFiles(inputs / "reference", inputs / "ect", inputs / "edm.safetensors", work)
    outcome = evaluate(compute, every_run().run("ect"), "tiny", CONFIG, files, lambda event: None)
    return json.dumps(outcome.metrics.to_json(), indent=1, sort_keys=True)


if __name__ == "__main__":
    Path(sys.argv[3]).write_text(record(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[4])))
