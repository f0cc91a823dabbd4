"""Memory of this machine and of its GPU, and how much of it is free, without a library for the device."""

import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import psutil

from cmcore.budget.machines import MACHINES, Machine

PROC, CGROUPS = Path("/proc"), Path("/sys/fs/cgroup")
CORE = 1e11  # matrix rate of one core in float32, operations a second: of present ones, as nothing is measured here
# Names of the limit, of what is in use, and of caches that give way, in the two versions of control groups.
VERSIONS = (
    ("", "memory.max", "memory.current", ("inactive_file", "active_file")),
    ("memory", "memory.limit_in_bytes", "memory.usage_in_bytes", ("total_inactive_file", "total_active_file")),
)
QUERY = ("nvidia-smi", "--query-gpu=name,memory.total,memory.free", "--format=csv,noheader,nounits")
PATIENCE = 5.0  # seconds for the driver of a GPU


@dataclass(frozen=True)
class Room:
    """The device that stages run on, with its nominal rate, and the bytes of its memory that are free."""

    machine: Machine
    free: float
    timed: bool = True  # whether the rate is that of a known device


def this_room(threads: int) -> Room:
    """The memory that processes of this machine share, at the nominal rate of `threads` cores."""
    total, free = memory(), free_memory()
    return Room(Machine("cpu", "this machine", total, CORE * threads), free)


def memory(proc: Path = PROC, groups: Path = CGROUPS) -> float:
    """Bytes of the machine, or of the container."""
    limits = (limit for limit, _ in _limits(proc, groups))
    return min([float(psutil.virtual_memory().total), *limits])


def free_memory(proc: Path = PROC, groups: Path = CGROUPS) -> float:
    """Bytes that processes can still take: of the machine, and of every container around this one."""
    rest = (max(0.0, limit - used) for limit, used in _limits(proc, groups))
    return min([float(psutil.virtual_memory().available), *rest])


def oom_kills(proc: Path = PROC) -> int | None:
    """How many processes the kernel has killed for want of memory since it started; None where it does not say."""
    try:
        lines = (proc / "vmstat").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) for line in lines if line.startswith("oom_kill ")), None)


def _limits(proc: Path, groups: Path) -> Iterator[tuple[float, float]]:
    """The limit in bytes of each control group that this process is in, and what is taken of it."""
    for controller, most, used, caches in VERSIONS:
        top = groups / controller
        path = top / _group(proc, controller)
        for folder in (path, *path.parents):  # of a container's own path some folders are not there
            if not folder.is_relative_to(top):
                break
            try:
                limit, taken = (folder / most).read_text().strip(), float((folder / used).read_text())
                lines = [line.split() for line in (folder / "memory.stat").read_text().splitlines()]
                cached = sum(float(count) for name, count in lines if name in caches)
            except (OSError, ValueError):
                continue
            if limit.isdecimal():  # and not "max"
                yield float(limit), taken - cached


def _group(proc: Path, controller: str) -> str:
    """The path of this process's group below that of the controller; of version 2 there is one for all."""
    try:
        lines = [line.split(":", 2) for line in (proc / "self/cgroup").read_text().splitlines()]
    except OSError:
        return ""
    return next((path.lstrip("/") for _, names, path in lines if controller in names.split(",")), "")


def gpu_room() -> Room | None:
    """The first GPU that processes see, as NVIDIA's driver describes it; None where it does not."""
    seen = os.environ.get("CUDA_VISIBLE_DEVICES", "0").partition(",")[0] or "0"
    try:
        done = subprocess.run([*QUERY, f"--id={seen}"], capture_output=True, text=True, check=True, timeout=PATIENCE)
        name, total, free = done.stdout.splitlines()[0].rsplit(",", 2)
        memory, rest = float(total) * 2**20, float(free) * 2**20
    except (OSError, subprocess.SubprocessError, ValueError, IndexError):
        return None
    known = known_gpu(name, memory)
    unknown = Machine("gpu", name, memory, CORE)
    return Room(replace(known, memory=memory) if known else unknown, rest, known is not None)


def known_gpu(name: str, memory: float) -> Machine | None:
    """The machine of `MACHINES` that a driver calls so, the nearest in memory where there are several."""
    plain = name.upper().replace(" ", "")

    def likeness(one: Machine) -> tuple[int, bool, float]:
        model = one.name.partition("-")[0].upper()
        return len(model) * (model in plain), ("pcie" in one.name) == ("PCIE" in plain), -abs(one.memory - memory)

    best = max(MACHINES.values(), key=likeness)
    return best if likeness(best)[0] else None
