"""How long jobs take together that need one another, some at a time."""

import heapq
from collections.abc import Iterable, Mapping


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
    chain: dict[str, float] = {}

    def length(job: str) -> float:
        if job not in chain:
            chain[job] = float("inf")  # of a job in a circle
            chain[job] = costs[job] + max((length(other) for other in costs if job in waits[other]), default=0.0)
        return chain[job]

    now, running, done = 0.0, list[tuple[float, str]](), set[str]()
    left = sorted(costs, key=length, reverse=True)
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
