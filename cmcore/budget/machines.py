"""Accelerators: matrix rates without sparsity, memory, and links to one another, from their makers' data sheets."""

import os
import time
from dataclasses import dataclass

import torch

TERA, GIGA = 1e12, 1e9


@dataclass(frozen=True)
class Machine:
    """Peak matrix rates in operations a second; 0 where there is no such unit, and then 32 bits are taken.

    `link` are bytes a second, each way, between the accelerators of one computer: NVLink or PCI Express.
    """

    name: str
    title: str
    memory: float  # bytes
    fp32: float
    tf32: float = 0.0
    half: float = 0.0  # fp16
    bf16: float = 0.0  # where it differs from fp16; -1 says there is none
    link: float = 32 * GIGA

    def rate(self, dtype: torch.dtype, precision: str) -> float:
        """Peak rate of an operation in that type, in a run of that precision."""
        if dtype == torch.bfloat16:
            return {0.0: self.half, -1.0: 0.0}.get(self.bf16, self.bf16) or self.fp32
        if dtype == torch.float16:
            return self.half or self.fp32
        return (self.tf32 if precision == "tf32" else 0.0) or self.fp32


MACHINES = {
    machine.name: machine
    for machine in (
        Machine("t4", "NVIDIA T4", 16 * GIGA, 8.1 * TERA, half=65 * TERA, bf16=-1, link=16 * GIGA),
        Machine("v100", "NVIDIA V100 SXM 32 GB", 32 * GIGA, 15.7 * TERA, half=125 * TERA, bf16=-1, link=150 * GIGA),
        Machine("rtx3090", "NVIDIA RTX 3090", 24 * GIGA, 35.6 * TERA, 35.6 * TERA, 71 * TERA),
        Machine("rtx4090", "NVIDIA RTX 4090", 24 * GIGA, 82.6 * TERA, 82.6 * TERA, 165.2 * TERA),
        Machine("l4", "NVIDIA L4", 24 * GIGA, 30.3 * TERA, 60 * TERA, 121 * TERA),
        Machine("l40s", "NVIDIA L40S", 48 * GIGA, 91.6 * TERA, 183 * TERA, 362 * TERA),
        Machine("a100-40", "NVIDIA A100 SXM 40 GB", 40 * GIGA, 19.5 * TERA, 156 * TERA, 312 * TERA, link=300 * GIGA),
        Machine("a100", "NVIDIA A100 SXM 80 GB", 80 * GIGA, 19.5 * TERA, 156 * TERA, 312 * TERA, link=300 * GIGA),
        Machine("h100-pcie", "NVIDIA H100 PCIe", 80 * GIGA, 51 * TERA, 378 * TERA, 756 * TERA, link=64 * GIGA),
        Machine("h100", "NVIDIA H100 SXM", 80 * GIGA, 67 * TERA, 495 * TERA, 989 * TERA, link=450 * GIGA),
        Machine("h200", "NVIDIA H200 SXM", 141 * GIGA, 67 * TERA, 495 * TERA, 989 * TERA, link=450 * GIGA),
        Machine("b200", "NVIDIA B200", 180 * GIGA, 75 * TERA, 1125 * TERA, 2250 * TERA, link=900 * GIGA),
    )
}


def this_cpu(size: int = 1024, seconds: float = 0.3) -> Machine:
    """The processor that runs this, with the rate of a large float32 matrix product measured now.

    The time is that of the processor, in which other programs do not count.
    """
    a, b = torch.ones(size, size), torch.ones(size, size)
    best, end = float("inf"), time.perf_counter() + seconds
    while True:
        start = time.thread_time()
        torch.mm(a, b)
        best = min(best, time.thread_time() - start)
        if time.perf_counter() > end:
            break
    threads = torch.get_num_threads()
    title = f"this processor, {threads} thread{'s' if threads > 1 else ''}"
    memory = float(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    return Machine("cpu", title, memory, 2 * size**3 / best, link=1.25 * GIGA)


def machine(name: str) -> Machine:
    """A machine by its name; a ValueError lists those there are."""
    if name == "cpu":
        return this_cpu()
    if name not in MACHINES:
        raise ValueError(f"expected one of {', '.join([*MACHINES, 'cpu'])}, got {name!r}")
    return MACHINES[name]
