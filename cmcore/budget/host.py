"""The machine that commands run on: cores, free memory and GPU."""

from dataclasses import dataclass
from pathlib import Path

import torch

from cmcore.data.sources.pool import cores

CGROUP = Path("/sys/fs/cgroup")  # of a container, whose limit the kernel's own number does not know
GPU_FREE = 0.9  # share of a GPU's free memory that is planned with


@dataclass(frozen=True)
class Host:
    """What there is to compute with."""

    cores: int
    memory: float  # bytes that are free
    gpu: str = ""  # name of the first one; empty where there is none
    gpu_memory: float = 0.0  # bytes of it that are free
    bf16: bool = False  # whether its matrix units take bfloat16

    @property
    def device(self) -> str:
        """Where runs are trained."""
        return "cuda" if self.gpu else "cpu"


def this_host() -> Host:
    """The machine as it is now."""
    if not torch.cuda.is_available():
        return Host(cores(), free_memory())
    free, _ = torch.cuda.mem_get_info(0)
    return Host(cores(), free_memory(), torch.cuda.get_device_name(0), GPU_FREE * free, torch.cuda.is_bf16_supported())


def free_memory() -> float:
    """Bytes that processes can still take, of the machine and of the container."""
    import psutil

    free = float(psutil.virtual_memory().available)
    limit, now = CGROUP / "memory.max", CGROUP / "memory.current"
    if not limit.is_file() or not limit.read_text(encoding="utf-8").strip().isdecimal():
        return free
    fields = (line.split() for line in (CGROUP / "memory.stat").read_text(encoding="utf-8").splitlines())
    cached = {key: int(value) for key, value in fields}.get("inactive_file", 0)  # the kernel gives it back
    return min(free, float(limit.read_text(encoding="utf-8")) - float(now.read_text(encoding="utf-8")) + cached)
