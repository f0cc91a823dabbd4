"""How things run and where they are tracked: the `compute` and `tracking` sections, which may never change a result.

They appear in no stage's `params:`, so changing them re-runs nothing.
"""

from dataclasses import dataclass
from typing import Literal

from cmcore.config import require


@dataclass(frozen=True, kw_only=True)
class ComputeConfig:
    """Where a stage's work is done."""

    backend: Literal["ray", "inline"] = "ray"  # inline: in the stage's own process, without Ray
    address: str = ""  # of a Ray cluster; the variable RAY_ADDRESS has precedence; empty: a local Ray of our own
    threads: int = 2  # of torch, in every job: the number of threads changes the last bits of a result
    device: Literal["auto", "cpu", "cuda"] = "auto"  # auto: cuda where there is one
    workers: int = 1  # processes of one training run, or of one evaluation, each with `threads` threads

    def __post_init__(self) -> None:
        require(self.threads >= 1, "threads", "at least 1", self.threads)
        require(self.workers >= 1, "workers", "at least 1", self.workers)
        require(self.workers == 1 or self.backend == "ray", "workers", "1 for the backend inline", self.workers)


@dataclass(frozen=True, kw_only=True)
class TrackingConfig:
    """Where runs can be looked at. The files of the pipeline do not depend on it."""

    mlflow: bool = True
    uri: str = ""  # of a server; the variable MLFLOW_TRACKING_URI has precedence; empty: a database in .tracking/
    experiment: str = ""  # empty: the name of the workload
