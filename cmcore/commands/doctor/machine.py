"""Cores, memory, disk and GPU."""

import os
import shutil
from pathlib import Path

from cmcore.commands.doctor.finding import FAIL, OK, WARN, Finding
from cmcore.edge.settings import ComputeConfig
from cmcore.numbers import size

SCARCE, LITTLE = 1e9, 10e9  # bytes of disk
MEMORY = 4e9  # bytes with which Ray, DVC and a small run are at ease
CGROUP = Path("/sys/fs/cgroup/memory.max")  # a container's limit, below which the kernel counts


def in_bytes(count: float) -> str:
    """As in 16.8 GB."""
    return size(count, "B", " ")


def cores() -> int:
    """Those that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def memory() -> float:
    """Bytes of the machine, or of the container."""
    total = float(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    limit = CGROUP.read_text().strip() if CGROUP.is_file() else ""
    return min(total, float(limit)) if limit.isdecimal() else total


def check_machine(compute: ComputeConfig) -> Finding:
    """Cores and memory, against the threads that each run takes."""
    text = f"{cores()} cores, {in_bytes(memory())} of memory"
    if memory() < MEMORY:
        return Finding("machine", WARN, text, f"{in_bytes(MEMORY)} are comfortable: `cmlab repro -j 1` needs least")
    if compute.threads > cores():
        return Finding("machine", WARN, text, f"compute.threads = {compute.threads} is more than there are cores")
    return Finding("machine", OK, text)


def check_disk(root: Path) -> Finding:
    """Free space where the project lies."""
    free = shutil.disk_usage(root).free
    if free < LITTLE:
        remedy = "make room: `cmlab clean`, `dvc gc --workspace`"
        return Finding("disk", FAIL if free < SCARCE else WARN, f"{in_bytes(free)} free", remedy)
    return Finding("disk", OK, f"{in_bytes(free)} free")


def check_torch(compute: ComputeConfig) -> Finding:
    """torch's build and the GPUs it sees."""
    import torch

    build = f"for CUDA {torch.version.cuda}" if torch.version.cuda else "for CPU"
    build = f"{torch.__version__}, built {f'for ROCm {torch.version.hip}' if torch.version.hip else build}"
    if torch.cuda.is_available():
        gpus = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
        return Finding("torch", OK, f"{build}; " + ", ".join(f"{g.name}, {in_bytes(g.total_memory)}" for g in gpus))
    if compute.device == "cuda":
        remedy = "set compute.device to auto or cpu, or install a torch built for the GPU"
        return Finding("torch", FAIL, f"{build}, no GPU seen, compute.device = cuda", remedy)
    if shutil.which("nvidia-smi"):
        return Finding(
            "torch", WARN, f"{build}, no GPU seen", "compare `nvidia-smi` with https://pytorch.org/get-started"
        )
    return Finding("torch", OK, f"{build}, no GPU: runs on the CPU")
