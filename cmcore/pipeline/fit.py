"""Whether the stages that are about to run fit the memory of this machine, and which of them side by side."""

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from cmcore.budget.need import Need, needs, rows_matter
from cmcore.budget.room import Room, gpu_room, this_room
from cmcore.config import ConfigError
from cmcore.numbers import size
from cmcore.pipeline.common import Setup
from cmcore.pipeline.replicates import jobs_of

KEPT = 5e8  # bytes that stay free beside the stages, for Ray and for what no plan counts
FILE = "needs.json"


@dataclass(frozen=True)
class Fit:
    """What the stages need of this machine.

    `memory` are bytes by stage, and `room` those that all stages at work may take together; neither is known of a
    cluster, and of a GPU, which has one stage at a time. `seconds` are those that the plan expects, by stage. `rows`
    are limits for stages that would not fit with the rows at once that their runs ask for.
    """

    memory: Mapping[str, float] = field(default_factory=dict)
    room: float = float("inf")
    seconds: Mapping[str, float] = field(default_factory=dict)
    rows: Mapping[str, int] = field(default_factory=dict)
    lines: tuple[str, ...] = ()  # to be said


def is_remote(setup: Setup) -> bool:
    """Whether the stages run on a cluster, whose machines are not known here."""
    address = os.environ.get("RAY_ADDRESS") or setup.compute.address
    return setup.compute.backend == "ray" and bool(address) and address != "local"


def room_of(setup: Setup) -> Room | None:
    """The device that stages run on; None where it is a GPU that does not say what is free."""
    import torch

    if setup.compute.device != "cpu" and torch.cuda.is_available():
        return gpu_room()
    return this_room(setup.compute.threads)


def fit(setup: Setup, stages: Iterable[str], jobs: int, *, refuse: bool = True) -> Fit:
    """Compare stages with the memory of this machine.

    Args:
        setup: the parameters.
        stages: those that are about to run.
        jobs: how many of them at a time.
        refuse: whether a stage that does not fit is an error, in place of a line.

    Raises:
        ConfigError: a stage takes more memory than is free.
    """
    stages = list(stages)
    if is_remote(setup) or (room := room_of(setup)) is None:
        return Fit()
    compute, folders = setup.compute, setup.folders
    try:
        found = needs(
            setup.project, stages, room.machine, folders.data, folders.work / FILE, compute.workers, compute.shard
        )
    except Exception as error:  # a method of one's own may ask more of its networks than stand-ins answer
        why = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        return Fit(lines=(f"memory and time are not known before: the stages could not be planned ({why})",))
    cpu = room.machine.name == "cpu"
    free, processes = max(0.0, room.free - KEPT), compute.workers if cpu else 1
    if setup.compute.rows:
        found = {s: need.at_most(setup.compute.rows) if s.startswith("train@") else need for s, need in found.items()}
    rows = {
        stage: limit for stage, need in found.items()
        if processes * need.most > free and (limit := _limit(setup, stage, need, free / processes))
    }  # fmt: skip
    reduced = [
        f"{stage} computes {limit} rows at once in place of {max(found[stage].memory)}, as those take "
        f"{size(found[stage].most, 'B', ' ')} of memory and {size(free / processes, 'B', ' ')} are free; its result is "
        "the same to rounding"
        for stage, limit in rows.items()
    ]
    taken = {
        stage: processes * (need.memory[rows[stage]] if stage in rows else need.most) for stage, need in found.items()
    }
    errors = [
        _too_large(setup, stage, need, free / processes, "" if cpu else "the GPU's ")
        for stage, need in found.items()
        if taken[stage] > free
    ]
    if errors and refuse:
        raise errors[0]
    seconds = {stage: need.seconds for stage, need in found.items()} if room.timed else {}
    if not cpu:
        return Fit(seconds=seconds, rows=rows, lines=(*reduced, *map(str, errors)))
    beside = [] if errors else _side_by_side(setup, taken, free, jobs)
    return Fit(taken, free, seconds, rows, (*reduced, *map(str, errors), *beside))


def _limit(setup: Setup, stage: str, need: Need, free: float) -> int:
    """The rows at once with which a stage fits, where they are ours to choose; else 0."""
    kind, _, name = stage.partition("@")
    ours = kind == "train" and setup.compute.micro_batch == "auto" and not rows_matter(setup.project.runs[name])
    return need.most_rows(free) if ours else 0


def _too_large(setup: Setup, stage: str, need: Need, free: float, whose: str) -> ConfigError:
    """A stage that does not fit, and the way out."""
    kind, _, name = stage.partition("@")
    taken = f"as {stage} takes {size(need.most, 'B', ' ')} of {whose}memory and {size(free, 'B', ' ')} are free"
    rows, by = need.most_rows(free), f"runs.{name}"
    if not rows:
        way = "not even one image at a time fits, so free some memory, or lower data.resolution"
        return ConfigError(f"{by}.net", f"expected a smaller network, {taken}; {way}")
    if kind == "edit":
        return ConfigError("runs", f"expected fewer of them, or smaller networks, {taken}")
    if kind == "evaluate":
        return ConfigError("eval.batch", f"expected at most {rows}, {taken}; no result depends on it beyond rounding")
    why = rows_matter(setup.project.runs[name])
    same = f"the result is another one of the same law, as {why}" if why else "the result is the same to rounding"
    way = f"{same}; or lower data.resolution, or use a smaller network"
    return ConfigError(f"{by}.train.micro_batch", f"expected at most {rows}, {taken}; {way}")


def _side_by_side(setup: Setup, taken: Mapping[str, float], free: float, jobs: int) -> list[str]:
    """A line for stages that do not fit beside one another."""
    each = sorted(
        ((taken[stage], job) for stage in taken for job in jobs_of(setup, stage)), key=lambda one: one[0], reverse=True
    )
    beside = [each[:count] for count in range(2, min(jobs, len(each)) + 1)]
    over = next((some for some in beside if sum(needed for needed, _ in some) > free), None)
    if over is None:
        return []
    most, (_, job) = len(over) - 1, over[0]
    such = f"{most} such stages run" if most > 1 else "one such stage runs"
    return [
        f"{size(free, 'B', ' ')} of memory are free and {job} takes {size(over[0][0], 'B', ' ')}: at most {such} at a "
        f"time, in place of {jobs}"
    ]


def fits_beside(memory: float, others: Iterable[float], room: float) -> bool:
    """Whether a stage may begin beside others: memory suffices for all of them, or there are none."""
    others = list(others)
    return not others or memory + sum(others) <= room
