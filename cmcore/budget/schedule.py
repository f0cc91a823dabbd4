"""How long jobs take together that need one another, some at a time."""

import heapq
from collections.abc import Iterable, Mapping


def chains(costs: Mapping[str, float], needs: Mapping[str, Iterable[str]]) -> dict[str, float]:
    """For every job the cost of the longest chain that starts with it: the job with the longest one goes first.

    That of a job which waits for itself is infinite.
    """
    lengths: dict[str, float] = {}

    def length(job: str) -> float:
        if job not in lengths:
            lengths[job] = float("inf")  # of a job in a circle
            after = [other for other in costs if job in needs.get(other, ())]
            lengths[job] = costs[job] + max(map(length, after), default=0.0)
        return lengths[job]

    return {job: length(job) for job in costs}


def least_time(costs: Mapping[str, float], needs: Mapping[str, Iterable[str]], jobs: int) -> float:
    """The least time that jobs can take, up to `jobs` at a time: their share of all work, or the longest chain."""
    return max(sum(costs.values()) / jobs, *chains(costs, needs).values(), 0.0)


def makespan(costs: Mapping[str, float], needs: Mapping[str, Iterable[str]], jobs: int) -> float:
    """The time from the first job to the end of the last, of up to `jobs` at a time.

    As `cmcore.pipeline.parallel` does it: of the jobs that can start, the one before the longest chain goes first.

    Args:
        costs: time of every job.
        needs: the jobs that must be done before a job; names that are no jobs count as done.
        jobs: how many may run at once.

    Raises:
        ValueError: jobs wait for one another.
    """
    waits = {job: {other for other in needs.get(job, ()) if other in costs} for job in costs}
    now, running, done = 0.0, list[tuple[float, str]](), set[str]()
    left = sorted(costs, key=chains(costs, waits).__getitem__, reverse=True)
    while left or running:
        for job in [job for job in left if waits[job] <= done]:
            if len(running) < jobs:
                heapq.heappush(running, (now + costs[job], job))
                left.remove(job)
        if not running:
            raise ValueError(f"jobs wait for one another: {', '.join(left)}")
        now, job = heapq.heappop(running)
        done.add(job)
    return now
