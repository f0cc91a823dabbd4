"""Runs a tiny search and says how far it is: for tests that kill it."""

import sys
from pathlib import Path

from tiny_search import make_job

from cmcore.edge.mlflow_search import SearchRecorder
from cmcore.edge.ray_tune import search
from cmcore.edge.settings import ComputeConfig, TrackingConfig

COMPUTE = ComputeConfig(threads=1, device="cpu")


def say(done: int, total: int) -> None:
    """One line, at once."""
    sys.stdout.write(f"{done} of {total}\n")
    sys.stdout.flush()


def run_search(root: Path, name: str, **changes):
    """The search of `make_job`, tracked in `root`; its trials and what was confirmed."""
    job = make_job(root, name, **changes)
    recorder = SearchRecorder(TrackingConfig(), job, root)
    trials, confirmed = search(COMPUTE, job, record=recorder.record, on_progress=say)
    recorder.close(trials[0], [])
    return job, trials, confirmed


if __name__ == "__main__":
    run_search(Path(sys.argv[1]), sys.argv[2], trials=int(sys.argv[3]))
