"""The `compute` and `tracking` sections: place and tracking of runs, which never change a result.

They are in no stage's `params:`, so a change of them makes nothing stale.
"""

from dataclasses import dataclass, replace
from typing import Literal

from cmcore.config import require


@dataclass(frozen=True, kw_only=True)
class ComputeConfig:
    """Place and resources of a stage's computation."""

    backend: Literal["ray", "inline"] = "ray"  # inline: in the stage's own process, without Ray
    address: str = ""  # of a Ray cluster; the variable RAY_ADDRESS has precedence; empty: a local Ray
    threads: int = 2  # of torch, in every job: the number of threads changes the last bits of a result
    device: Literal["auto", "cpu", "cuda"] = "auto"  # auto: cuda where there is one
    compile_cache: str = ""  # folder of compiled networks; empty: cmlab/compiled in the user's cache folder
    # Rows of a training step computed at once, at most, beside train.micro_batch; 0 has no limit. auto: fewer than the
    # whole batch where memory does not suffice otherwise and no result depends on it beyond rounding.
    micro_batch: int | Literal["auto"] = "auto"
    workers: int = 1  # processes of one training run, or of one evaluation, each with `threads` threads
    shard: bool = False  # whether each worker holds a part of the networks only (FSDP2), for what does not fit

    def __post_init__(self) -> None:
        require(self.threads >= 1, "threads", "at least 1", self.threads)
        rows = self.micro_batch
        require(rows == "auto" or rows >= 0, "micro_batch", "auto, or a number of rows", rows)
        require(self.workers >= 1, "workers", "at least 1", self.workers)
        require(self.workers == 1 or self.backend == "ray", "workers", "1 for the backend inline", self.workers)
        require(self.workers > 1 or not self.shard, "shard", "false, or workers to be at least 2", self.shard)

    @property
    def rows(self) -> int:
        """The limit of a training step, 0 for none."""
        return 0 if self.micro_batch == "auto" else self.micro_batch

    def with_rows(self, rows: int) -> "ComputeConfig":
        """The same with another limit, where that is a choice of ours; 0 changes nothing."""
        return replace(self, micro_batch=rows) if rows and self.micro_batch == "auto" else self


@dataclass(frozen=True, kw_only=True)
class TrackingConfig:
    """Tracking of runs in MLflow. The files of the pipeline do not depend on it."""

    mlflow: bool = True
    uri: str = ""  # of a server; the variable MLFLOW_TRACKING_URI has precedence; empty: a database in .tracking/
    experiment: str = ""  # empty: the name of the workload
