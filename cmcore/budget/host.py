"""The machine that commands run on: cores, free memory and GPU."""

from dataclasses import dataclass

import psutil
import torch

from cmcore.budget.room import free_memory
from cmcore.data.sources.pool import cores

LOOK = 0.5  # seconds of a look at what the cores do
GPU_FREE = 0.9  # share of a GPU's free memory that is planned with


@dataclass(frozen=True)
class Host:
    """What there is to compute with."""

    cores: int
    memory: float  # bytes that are free
    gpu: str = ""  # name of the first one; empty where there is none
    gpu_memory: float = 0.0  # bytes of it that are free
    bf16: bool = False  # whether its matrix units take bfloat16
    busy: float = 0.0  # share of the time of its cores that other programs have

    @property
    def core_count(self) -> str:
        """The number of cores in words."""
        return f"{self.cores} core{'s' * (self.cores > 1)}"

    @property
    def device(self) -> str:
        """Where runs are trained."""
        return "cuda" if self.gpu else "cpu"


def this_host() -> Host:
    """The machine as it is now."""
    busy = psutil.cpu_percent(LOOK) / 100
    if not torch.cuda.is_available():
        return Host(cores(), free_memory(), busy=busy)
    free, _ = torch.cuda.mem_get_info(0)
    name, half = torch.cuda.get_device_name(0), torch.cuda.is_bf16_supported()
    return Host(cores(), free_memory(), name, GPU_FREE * free, half, busy)
