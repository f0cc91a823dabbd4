"""What is said before the pipeline begins: of memory, and of work for more than a day."""

import sys
from collections.abc import Iterable

from cmcore.budget.schedule import least_time
from cmcore.edge.ray_session import ComputeError
from cmcore.numbers import duration
from cmcore.pipeline.common import Setup
from cmcore.pipeline.fit import Fit, fit
from cmcore.pipeline.parallel import stage_needs
from cmcore.pipeline.speeds import Speeds

LONG = 86400.0  # seconds of work above which one says so first


def before(setup: Setup, stages: Iterable[str], jobs: int, speeds: Speeds, *, yes: bool) -> Fit:
    """Say what does not suit this machine, and ask on a terminal before work of more than a day.

    Args:
        setup: the parameters.
        stages: those that are about to run.
        jobs: how many of them at a time.
        speeds: what is known of this machine, and is told what is planned.
        yes: whether to go on in any case.

    Raises:
        ConfigError: a stage takes more memory than is free.
        ComputeError: the answer is no.
    """
    stages = list(stages)
    found = fit(setup, stages, jobs, refuse=not yes)
    speeds.planned = found.seconds
    each = {s: speeds.work(s, setup.project) * setup.project.replicates(s.partition("@")[2]) for s in stages}
    seconds = duration_of(setup, each, jobs)
    if seconds > LONG:
        print(long(setup, each, seconds), flush=True)
    for line in found.lines:
        print(line, flush=True)
    if seconds > LONG and not yes and sys.stdin.isatty() and sys.stdout.isatty() and not agreed():
        raise ComputeError("nothing was started")
    return found


def duration_of(setup: Setup, each: dict[str, float], jobs: int) -> float:
    """Seconds of stages that take so many each, up to `jobs` at a time."""
    after = {stage: needed for stage, needed in stage_needs(setup.project).items() if stage in each}
    return least_time(each, after, jobs)


def long(setup: Setup, each: dict[str, float], seconds: float) -> str:
    """The line for work of more than a day: how long, where most of it goes, and what makes it less."""
    longest = max(each, key=each.__getitem__)
    share = max(2, round(2 * seconds / LONG))
    return (
        f"about {duration(seconds)} of work on this machine, {duration(each[longest])} of it {longest}; a 1/{share} of "
        f"train.images takes half a day; fewer runs (--runs NAMES), a smaller network or data.resolution, or a GPU "
        f"(`cmlab plan {setup.project.workload} --gpu rtx4090`) shorten it as well"
    )


def agreed() -> bool:
    """The answer on the terminal."""
    try:
        return input("Begin? [y/N] ").strip().lower() in ("y", "yes")
    except EOFError:
        return False
