"""How long the pipeline takes on n nodes, by list scheduling of its stages with measured durations.

    python -m benchmarks.graph [--nodes 1 2 8 64] [--copies 10]

A node does one stage at a time. Durations are those that `cmlab repro` remembers in `.work/speeds.json`, or its guesses
where it has none. No schedule is shorter than the critical path, nor than the work divided by the nodes, and a list
schedule (Graham, 1966) is never longer than the sum of both.
"""

import argparse
import heapq
import sys
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from cmcore.assemble.project import Project
from cmcore.pipeline.common import load
from cmcore.pipeline.parallel import chains, is_computed, stage_needs
from cmcore.pipeline.speeds import RECORDING, Speeds

ONCE = ("reference", "edit")  # stages of the workload, however many copies there are of its runs
Needs = Mapping[str, Iterable[str]]


class Slot(NamedTuple):
    """When and where a job runs."""

    start: float
    end: float
    node: int


def schedule(seconds: Mapping[str, float], needs: Needs, nodes: int) -> dict[str, Slot]:
    """List scheduling: a free node takes, of the jobs that can run, the one with the longest chain after it.

    Args:
        seconds: the jobs and their durations.
        needs: the jobs that must have ended before a job starts; a circle is a ValueError.
        nodes: how many jobs can run at a time.

    Returns:
        When and where each job runs.
    """
    chain = chains(seconds, needs)
    waiting = sorted(seconds, key=lambda job: -chain[job])
    free, running, slots = list(range(nodes)), [], dict[str, Slot]()
    ended, now = set[str](), 0.0
    while waiting or running:
        for job in [job for job in waiting if ended.issuperset(needs.get(job, ()))][: len(free)]:
            waiting.remove(job)
            slots[job] = Slot(now, now + seconds[job], heapq.heappop(free))
            heapq.heappush(running, (slots[job].end, job))
        now, job = heapq.heappop(running)
        ended.add(job)
        heapq.heappush(free, slots[job].node)
    return slots


def makespan(slots: Mapping[str, Slot]) -> float:
    """When the last job ends."""
    return max((slot.end for slot in slots.values()), default=0.0)


def critical_path(seconds: Mapping[str, float], needs: Needs) -> float:
    """The longest chain: no number of nodes is faster."""
    return max(chains(seconds, needs).values(), default=0.0)


def pipeline(project: Project, copies: int = 1) -> dict[str, list[str]]:
    """The stages of dvc.yaml and what each needs, with `copies` of all runs: a study over as many seeds."""
    needs: dict[str, list[str]] = {"prepare": []}
    for copy in range(copies):
        names = {stage: stage if stage in ONCE else f"{stage}#{copy}" for stage in stage_needs(project)}
        for stage, before in stage_needs(project).items():
            if names[stage] in needs:
                continue  # edits are those of the first copy
            needs[names[stage]] = ["prepare", *(names[other] for other in before)]
    needs["tabulate"] = [stage for stage in needs if stage.startswith(("evaluate@", "edit"))]
    return needs


def durations(project: Project, stages: Iterable[str], speeds: Speeds) -> dict[str, float]:
    """Seconds of every stage: of its work alone where the driver computes it, else in a process of its own."""
    names = {stage: stage.partition("#")[0] for stage in stages}
    return {
        stage: speeds.work(name, project) if is_computed(name) else speeds.expected(name, project)
        for stage, name in names.items()
    }


def repro(seconds: Mapping[str, float], needs: Needs, jobs: int) -> float:
    """Seconds of `cmlab repro -j jobs`: most stages are scheduled, and their results are recorded one by one."""
    computed = {stage: time for stage, time in seconds.items() if is_computed(stage)}
    inner = {stage: [other for other in needs[stage] if other in computed] for stage in computed}
    alone = sum(seconds.values()) - sum(computed.values())
    return alone + makespan(schedule(computed, inner, jobs)) + RECORDING * len(computed)


def rows(seconds: Mapping[str, float], needs: Needs, nodes: Iterable[int]) -> list[list[str]]:
    """The table: one row for a number of nodes."""
    total, path = sum(seconds.values()), critical_path(seconds, needs)
    table = []
    for count in nodes:
        span = makespan(schedule(seconds, needs, count))
        table.append([
            f"{count}", f"{span:.0f}", f"{span / path:.2f}", f"{total / span:.1f}", f"{total / span / count:.0%}",
            f"{repro(seconds, needs, count):.0f}",
        ])  # fmt: skip
    return table


def main() -> None:
    """Print the table for the active workload."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.graph", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--nodes", type=int, nargs="+", default=[1, 2, 8, 64])
    parser.add_argument("--copies", type=int, nargs="+", default=[1, 10], help="of all runs, as for several seeds")
    options = parser.parse_args()
    setup = load()
    speeds = Speeds.read(setup.folders.work / "speeds.json")
    measured = any(key.startswith(f"{setup.project.workload}/") for key in speeds.seconds)
    print(f"{setup.project.workload}: durations {'measured here' if measured else 'guessed: nothing was run here yet'}")
    for copies in options.copies:
        needs = pipeline(setup.project, copies)
        seconds = durations(setup.project, needs, speeds)
        print(
            f"\n{copies} x {len(setup.project.runs)} runs: {len(needs)} stages, {sum(seconds.values()):.0f} s of work, "
            f"critical path {critical_path(seconds, needs):.0f} s\n"
        )
        print("| nodes | makespan s | / critical path | speed-up | efficiency | cmlab repro -j nodes s |")
        print("| ---: | ---: | ---: | ---: | ---: | ---: |")
        for row in rows(seconds, needs, options.nodes):
            print(f"| {' | '.join(row)} |")


if __name__ == "__main__":
    sys.exit(main())
