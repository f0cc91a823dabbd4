"""`cmlab new`: from a folder of images to a workload that this machine finishes within a budget."""

import re
from collections.abc import Callable
from pathlib import Path

from cmcore.atomic import write_atomic
from cmcore.budget.choose import Choice, Request, UnfitError, choose
from cmcore.budget.host import this_host
from cmcore.budget.recipes import book
from cmcore.budget.workload_text import rows, text
from cmcore.commands.place import WORKLOADS, CommandError
from cmcore.commands.plan import table
from cmcore.config import ConfigError, require
from cmcore.data.sources.survey import Survey, survey
from cmcore.numbers import duration, size

UNITS = {"s": 1.0, "min": 60.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
LEAST = 60.0  # seconds
BUSY = 0.25  # share of the cores from which on it is said
FULL = 64  # side of the images that are looked at, where no larger one is asked for


def seconds(budget: str) -> float:
    """A time such as 20min, 8h or 1h30min.

    Raises:
        ConfigError: it is none, or less than a minute.
    """
    parts = re.findall(r"(\d+(?:\.\d+)?)\s*(min|[smhd])", budget)
    plain = "".join(number + unit for number, unit in parts) == re.sub(r"\s", "", budget)
    require(bool(parts) and plain, "--budget", "a time such as 20min, 8h or 1h30min", budget)
    total = sum(float(number) * UNITS[unit] for number, unit in parts)
    require(total >= LEAST, "--budget", "at least 1min", budget)
    return total


def new(
    name: str, path: Path, root: Path, *, budget: str, methods: str, resolution: int = 0, subfolder: str = "",
    say: Callable[[str], None] = print,
) -> list[str]:  # fmt: skip
    """Look at images and machine, measure, choose, and write workloads/NAME.yaml; the result is the plan.

    Args:
        name: of the workload.
        path: of the images: a folder, an archive or an array.
        root: the project folder.
        budget: as `seconds` reads it.
        methods: separated by commas; the teacher is added where it is not among them.
        resolution: of the images, 0 for what suits the budget.
        subfolder: of the data, to which they are restricted.
        say: told what is being done.

    Raises:
        ConfigError: an argument is wrong, or there is such a workload.
        DataError: the images cannot be read.
        CommandError: nothing that makes sense fits memory and budget; the message says what would.
    """
    file = root / WORKLOADS / f"{name}.yaml"
    named = name.isascii() and name.replace("-", "").replace("_", "").isalnum()
    require(named, "NAME", "a name of letters, digits, '_' and '-'", name)
    if file.exists():
        raise ConfigError("NAME", f"workloads/{name}.yaml exists and is not overwritten; expected another name")
    wanted = list(dict.fromkeys([book().teacher, *filter(None, (one.strip() for one in methods.split(",")))]))
    limit, host = seconds(budget), this_host()
    path = place_of(path, root)
    say(f"looking at {path}")
    seen = survey(path, subfolder, resolution=max(resolution, FULL))
    say(described(seen))
    say(f"{host.gpu + ', ' if host.gpu else ''}{host.core_count}, {size(host.memory, 'B', ' ')} free; measuring steps")
    if host.busy > BUSY:
        say(f"other programs have {host.busy:.0%} of the cores now: the times of the plan are for when they are done")
    try:
        choice = choose(Request(name, seen, host, limit, tuple(wanted), resolution))
    except UnfitError as error:
        raise CommandError(str(error)) from error
    file.parent.mkdir(exist_ok=True)
    write_atomic(file, text(choice).encode())
    return plan(choice)


def place_of(path: Path, root: Path) -> Path:
    """Relative to the project where it is in it. A link in the project, as `data` often is one, is not followed."""
    for place in (path.absolute(), path.resolve()):
        if place.is_relative_to(root) and ".." not in place.parts:
            return place.relative_to(root)
    return path.resolve()


def described(seen: Survey) -> str:
    """The data in a line."""
    least, middle, most = seen.sides
    parts = [
        f"{seen.count} images" + (f" of {seen.classes} classes" if seen.classes else ""),
        "colour" if seen.data.channels == 3 else "grey",
        f"shorter sides of {least} to {most} pixels ({middle} in the middle)" if least != most else f"{least} pixels",
    ]
    parts += [] if seen.square else ["not all square"]
    parts += [f"{seen.transparent} transparent, laid over {seen.data.background}"] if seen.transparent else []
    parts += [f"{seen.duplicates} exact duplicates"] if seen.duplicates else []
    parts += [f"{seen.decoded} of them decoded"] if seen.decoded < seen.count else []
    return ", ".join(parts)


def plan(choice: Choice) -> list[str]:
    """The lines to print."""
    request, resolution = choice.request, choice.resolution
    micro = choice.parameters["train"]["micro_batch"]
    lines = [
        "",
        f"{request.name}: {resolution}x{resolution}, {choice.about} of {size(choice.weights)} parameters, "
        f"batch {choice.parameters['train']['batch']}" + (f" in parts of {micro}" if micro else ""),
        "",
        *table(rows(choice)),
        "",
        f"about {duration(choice.total)} of {duration(request.budget)} with {choice.jobs} "
        f"stage{'s' * (choice.jobs > 1)} at a time, from steps measured now; {choice.parameters['eval']['samples']} "
        "samples for each row of the tables",
    ]
    if choice.capped:
        lines.append("the images have been seen often enough before the budget ends: more of them would use it")
    return [
        *lines, f"wrote workloads/{request.name}.yaml, with a reason beside each choice; next:", "",
        f"    make use WORKLOAD={request.name}", f"    make repro JOBS={choice.jobs}",
    ]  # fmt: skip
