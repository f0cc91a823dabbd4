"""The wall time of a run's training, over all its sessions, and the device.

Two equal runs differ in it, so it stands in a file of its own, beside the results and not among them.
"""

import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from cmcore.atomic import write_atomic
from cmcore.closure import UNKNOWN, revision

if TYPE_CHECKING:
    import torch

TIME = "time.json"


@dataclass(frozen=True, kw_only=True)
class TrainingTime:
    """The content of the file."""

    seconds: float = 0.0  # of the clock; what a kill threw away is not in it
    device: str = ""  # of one worker; empty where nothing was trained
    workers: int = 1
    compile_seconds: float = 0.0  # of them
    code: str = ""  # git commits of the code of its sessions; empty where nothing was trained

    def write(self, path: Path) -> None:
        """Write, or replace, the file."""
        write_atomic(path, (json.dumps(asdict(self), indent=2) + "\n").encode())


class Stopwatch:
    """A clock that goes on from the file of earlier sessions."""

    def __init__(self, path: Path, device: "torch.device", workers: int) -> None:
        self._path, self._device, self._workers = path, device_name(device), workers
        before = TrainingTime(**json.loads(path.read_text(encoding="utf-8"))) if path.exists() else TrainingTime()
        self._start = time.monotonic() - before.seconds
        self._code = _joined(before.code or UNKNOWN * bool(before.seconds), revision())
        from cmcore.train.compiled import CLOCK  # imports torch

        self._compiling, self._compile_start = CLOCK, CLOCK.seconds - before.compile_seconds

    def read(self) -> TrainingTime:
        """The time until now."""
        return TrainingTime(
            seconds=round(time.monotonic() - self._start, 3),
            device=self._device,
            workers=self._workers,
            compile_seconds=round(self._compiling.seconds - self._compile_start, 3),
            code=self._code,
        )

    def write(self) -> None:
        """Write the time until now."""
        self.read().write(self._path)


def _joined(before: str, now: str) -> str:
    return before if now in before.split(", ") else ", ".join(filter(None, (before, now)))


def device_name(device: "torch.device") -> str:
    """The name of the hardware; of a CPU also the number of threads."""
    import torch  # the report, which only reads the file, does without

    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    threads = torch.get_num_threads()
    return f"{_cpu()}, {threads} thread{'s' * (threads != 1)}"


def _cpu() -> str:
    """Linux says it in a file; elsewhere it is only called a CPU."""
    facts = Path("/proc/cpuinfo")
    lines = facts.read_text(encoding="utf-8").splitlines() if facts.exists() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "CPU")
