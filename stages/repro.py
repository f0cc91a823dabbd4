"""`make repro`: check the parameters, say what is to be done, run it, and show the result."""

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from cmcore.config import ConfigError
from cmcore.edge.ray_session import SHARED, own_ray
from stages.common import Setup, load
from stages.plan import STARTING, Speeds, changed_stages, words

LAST = "tabulate"  # what `make repro` is about
RUNNING = re.compile(r"^Running stage '(?P<stage>.+)':$")
CACHED = re.compile(r"^Stage '(?P<stage>.+)' is cached - skipping run, checking out outputs$")
SKIPPED = re.compile(r"^Stage '(?P<stage>.+)' didn't change, skipping$")
# What DVC and the stages say that helps nobody here: our own lines say it already, or it is advice.
SILENT = re.compile(
    r"^\s*$|^> python -m|^\w+( \S+)? \.\.\.$|^(Updating|Generating) lock|"
    r"^Use `dvc push`|^To (track|enable)|^\t(git add|dvc config)|^Data and pipelines are up to date"
)


def plan() -> list[str]:
    """The stages that `dvc repro tabulate` would run, in order: everything but searches."""
    import networkx
    from dvc.repo import Repo

    with Repo() as repo:
        graph: Any = repo.index.graph
        last = next(stage for stage in graph if stage.addressing == LAST)
        order = [stage.addressing for stage in networkx.dfs_postorder_nodes(graph, last)]
        parents = {stage.addressing: [parent.addressing for parent in graph.successors(stage)] for stage in graph}
        return changed_stages(repo.status(), {name: parents[name] for name in order})


def start(environment: dict[str, str], *command: str, stdout: int | None = None) -> subprocess.Popen[str]:
    """Start a module. What it starts runs with this python too, whether or not its environment was activated."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    environment = {**os.environ, **environment, "PATH": path, "PYTHONUNBUFFERED": "1"}
    return subprocess.Popen([sys.executable, "-m", *command], stdout=stdout, text=True, env=environment)


def train_ahead(runs: list[str], jobs: int, environment: dict[str, str]) -> int:
    """Train several runs at a time; the result is the exit code."""
    print(f"training {len(runs)} runs, up to {jobs} at a time: {', '.join(runs)}", flush=True)
    process = start(environment, "stages.parallel", str(jobs), *runs)
    with stopped_with_us(process):
        return process.wait()


def run_dvc(
    todo: list[str], total: int, setup: Setup, environment: dict[str, str], *targets: str, trained: Sequence[str] = ()
) -> int:
    """Run `dvc repro` and turn what it says into one line a stage, with what is left.

    Args:
        todo: the stages that are left to run.
        total: how many there were at the start.
        setup: the parameters.
        environment: variables for the stages.
        *targets: the stages to stop at.
        trained: stages whose work is done, so that their time says nothing.

    Returns:
        The exit code.
    """
    speeds = Speeds.read(setup.folders.work / "speeds.json")
    left, running, since = list(todo), "", time.monotonic()
    process = start(environment, "dvc", "repro", *targets, stdout=subprocess.PIPE)
    with stopped_with_us(process):
        assert process.stdout is not None
        for line in map(str.rstrip, process.stdout):
            started, cached, skipped = RUNNING.match(line), CACHED.match(line), SKIPPED.match(line)
            if skipped:
                left = [name for name in left if name != skipped["stage"]]
            elif started or cached:
                if running and running not in trained:
                    speeds.learn(running, setup.project, time.monotonic() - since)
                stage = (started or cached)["stage"]  # pyright: ignore[reportOptionalSubscript]
                running, since = (stage, time.monotonic()) if started else ("", since)
                rest = sum(STARTING if name in trained else speeds.expected(name, setup.project) for name in left)
                left = [name for name in left if name != stage]
                place = f"[{total - len(left)}/{total}]"
                print(f"{place} {stage}{'' if started else ': restored'}, about {words(rest)} left", flush=True)
            elif not SILENT.match(line):
                print(f"      {line}", flush=True)
        code = process.wait()
    if running and code == 0 and running not in trained:
        speeds.learn(running, setup.project, time.monotonic() - since)
    return code


@contextlib.contextmanager
def stopped_with_us(process: subprocess.Popen[str]) -> Iterator[None]:
    """End the process when we are asked to end. Its stages watch it, and end by themselves."""

    def stop(number: int, frame: Any) -> None:
        del frame
        process.terminate()
        sys.exit(128 + number)

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    except BaseException:
        process.terminate()
        process.wait()
        raise
    finally:
        signal.signal(signal.SIGTERM, before)


def summary(setup: Setup) -> str:
    """The comparison table, and where everything is."""
    reports = setup.folders.reports.relative_to(setup.folders.root)
    return "\n".join(
        (
            (setup.folders.reports / "tables" / "comparison.md").read_text(encoding="utf-8"),
            f"Report   {reports / 'index.html'}",
            f"Figures  {reports / 'figures'}/",
            f"Tables   {reports / 'tables'}/ (Markdown, CSV, LaTeX)",
            f"MLflow   {'make ui' if setup.tracking.mlflow else 'off (tracking.mlflow)'}",
        )
    )


def run(todo: list[str], setup: Setup, jobs: int, environment: dict[str, str]) -> int:
    """Do what is to be done, training up to `jobs` runs at a time; the result is the exit code."""
    total = len(todo)
    trained = [stage for stage in todo if stage.startswith("train@")] if jobs > 1 else []
    if len(trained) > 1:
        if "prepare" in todo:
            if code := run_dvc(todo, total, setup, environment, "prepare"):
                return code
            todo = [stage for stage in todo if stage != "prepare"]
        if code := train_ahead([stage.removeprefix("train@") for stage in trained], jobs, environment):
            return code
    return run_dvc(todo, total, setup, environment, LAST, trained=trained)


def jobs_at_once(wanted: str, setup: Setup, ours: bool) -> int:
    """JOBS as a number; `auto` is as many as the cores of this machine carry, or all that a cluster takes.

    Raises:
        ConfigError: it is neither.
    """
    if wanted == "auto":
        if setup.compute.backend != "ray":
            return 1
        return max(1, (os.cpu_count() or 1) // setup.compute.threads) if ours else len(setup.project.runs)
    if not (wanted.isdecimal() and int(wanted) >= 1):
        raise ConfigError("JOBS", f"expected auto or a whole number of at least 1, got {wanted!r}")
    return int(wanted)


def main(wanted: str = "auto") -> int:
    """Everything; the result is the exit code."""
    start = time.monotonic()
    try:
        setup = load()
        compute = setup.compute
        ours = compute.backend == "ray" and not (os.environ.get("RAY_ADDRESS") or compute.address)
        jobs = jobs_at_once(wanted, setup, ours)
    except ConfigError as error:
        print(f"params.yaml: {error}" if error.path != "JOBS" else error, file=sys.stderr)
        return 2
    todo = plan()
    print(f"{setup.project.workload}: {len(todo)} stages to run" + (f": {', '.join(todo)}" if todo else ""), flush=True)
    with own_ray(compute, jobs) if ours and todo else contextlib.nullcontext("") as address:
        code = run(todo, setup, jobs, {SHARED: address} if address else {})
    if code:
        print("stopped; `make repro` continues from here", file=sys.stderr)
        return code
    print(f"\n{summary(setup)}\n\n{len(todo)} stages in {words(time.monotonic() - start)}")
    return 0


if __name__ == "__main__":
    os.chdir(Path(__file__).resolve().parent.parent)
    try:
        sys.exit(main(*sys.argv[1:]))
    except KeyboardInterrupt:
        print("stopped; `make repro` continues from here", file=sys.stderr)
        sys.exit(128 + signal.SIGINT)
