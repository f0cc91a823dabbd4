"""`cmlab repro`: check the parameters, say what is to be done, run it, and show the result."""

import contextlib
import logging
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cmcore.assemble.checks import require_files
from cmcore.assemble.project import require_decoder
from cmcore.config import ConfigError
from cmcore.data.sources.changes import changed
from cmcore.edge.autoencoder import check_decoder
from cmcore.edge.ray_session import SHARED, ComputeError, connection
from cmcore.numbers import about
from cmcore.pipeline.common import Setup, load
from cmcore.pipeline.parallel import compute_all, is_ahead
from cmcore.pipeline.process import DRIVER
from cmcore.pipeline.speeds import STARTING, Speeds, changed_stages

LAST = "tabulate"  # what `make repro` is about
RUNNING = re.compile(r"^Running stage '(?P<stage>.+)':$")
CACHED = re.compile(r"^Stage '(?P<stage>.+)' is cached - skipping run, checking out outputs$")
SKIPPED = re.compile(r"^Stage '(?P<stage>.+)' didn't change, skipping$")
# What DVC and the stages say that helps nobody here: our own lines say it already, or it is advice.
SILENT = re.compile(
    r"^\s*$|^> python -m|^\w+( \S+)? \.\.\.$|^(Updating|Generating) lock|"
    r"^Use `dvc push`|^To (track|enable)|^\t(git add|dvc config)|^Data and pipelines are up to date"
)


def plan() -> tuple[list[str], set[str]]:
    """The stages that `dvc repro tabulate` would run, in order, and those of them that it would restore.

    Stage `code` is run here, as all others depend on what it finds. Searches are left out. What DVC has kept from
    another time is restored here: nobody has to do that work.
    """
    import networkx
    from dvc.repo import Repo
    from dvc.stage.cache import RunCacheNotFoundError

    logging.getLogger("dvc").setLevel(logging.WARNING)  # what it restores is said once, by `dvc repro`
    os.environ[DRIVER] = str(os.getpid())
    repo: Any
    with Repo() as repo:
        repo.reproduce("code")
        graph = repo.index.graph
        last = next(stage for stage in graph if stage.addressing == LAST)
        stages = {stage.addressing: stage for stage in networkx.dfs_postorder_nodes(graph, last)}
        parents = {name: [parent.addressing for parent in graph.successors(stage)] for name, stage in stages.items()}
        todo, kept = changed_stages(repo.status(), parents), set[str]()
        with repo.lock:
            for name in todo:
                if kept.issuperset(parent for parent in parents[name] if parent in todo):
                    with contextlib.suppress(RunCacheNotFoundError):
                        repo.stage_cache.restore(stages[name])
                        kept.add(name)
        return todo, kept


def start(environment: dict[str, str], *command: str) -> subprocess.Popen[str]:
    """Start a module, to be listened to. What it starts runs with this python too, activated or not."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    environment = {**os.environ, **environment, "PATH": path, "PYTHONUNBUFFERED": "1"}
    return subprocess.Popen([sys.executable, "-m", *command], stdout=subprocess.PIPE, text=True, env=environment)


def work_ahead(todo: list[str], kept: set[str], total: int, setup: Setup, jobs: int) -> None:
    """Do the work of the stages that can be done ahead of DVC and were not kept; they leave `todo`."""
    ahead = [stage for stage in todo if is_ahead(stage) and stage not in kept]
    if not ahead:
        return
    print(f"{len(ahead)} stages, up to {jobs} at a time", flush=True)

    def say(stage: str, left: float) -> None:
        todo.remove(stage)
        print(f"[{total - len(todo)}/{total}] {stage}, about {about(left)} left", flush=True)

    compute_all(setup, ahead, jobs, say)


def run_dvc(todo: list[str], total: int, setup: Setup, environment: dict[str, str], *targets: str) -> int:
    """Run `dvc repro` and turn what it says into one line a stage, with what is left.

    Args:
        todo: the stages whose work is left to be done. Others that DVC runs only take results that wait.
        total: how many there were at the start.
        setup: the parameters.
        environment: variables for the stages.
        *targets: the stages to stop at.

    Returns:
        The exit code.
    """
    speeds = Speeds.read(setup.folders.work / "speeds.json")
    running, since = "", time.monotonic()

    def learn() -> None:
        if running:
            speeds.learn(running, setup.project, time.monotonic() - since - STARTING)

    process = start(environment, "dvc", "repro", *targets)
    with stopped_with_us(process):
        assert process.stdout is not None
        for line in map(str.rstrip, process.stdout):
            started, cached, skipped = RUNNING.match(line), CACHED.match(line), SKIPPED.match(line)
            if match := started or cached or skipped:
                learn()
                stage, running = match["stage"], ""
                if stage not in todo:
                    continue
                rest = sum(speeds.expected(name, setup.project) for name in todo)
                todo.remove(stage)
                if started:
                    running, since = stage, time.monotonic()
                if not skipped:
                    how = "" if started else ": restored"
                    print(f"[{total - len(todo)}/{total}] {stage}{how}, about {about(rest)} left", flush=True)
            elif not SILENT.match(line):
                print(f"      {line}", flush=True)
        code = process.wait()
    if code == 0:
        learn()
    return code


@contextlib.contextmanager
def stopped_with_us(process: subprocess.Popen[str]) -> Iterator[None]:
    """End the process when we are asked to end. Its stages watch it, and end by themselves."""
    try:
        yield
    except BaseException:
        process.terminate()
        process.wait()
        raise


def summary(setup: Setup) -> str:
    """The comparison table, and where everything is."""
    reports = setup.folders.reports.relative_to(setup.folders.root)
    return "\n".join(
        (
            (setup.folders.reports / "tables" / "comparison.md").read_text(encoding="utf-8"),
            f"Report   {reports / 'index.html'}",
            f"Figures  {reports / 'figures'}/",
            f"Tables   {reports / 'tables'}/ (Markdown, CSV, LaTeX)",
            f"MLflow   {'cmlab ui' if setup.tracking.mlflow else 'off (tracking.mlflow)'}",
        )
    )


def run(todo: list[str], kept: set[str], setup: Setup, jobs: int, environment: dict[str, str]) -> int:
    """Do what is to be done, up to `jobs` stages at a time; the result is the exit code."""
    total, ray = len(todo), setup.compute.backend == "ray"
    if ray and "prepare" in todo and (code := run_dvc(todo, total, setup, environment, "prepare")):
        return code
    if ray:
        work_ahead(todo, kept, total, setup, jobs)
    return run_dvc(todo, total, setup, environment, LAST)


def prepare_again(setup: Setup) -> int:
    """Prepare the data anew if the files at `data.path` have changed, which DVC does not see; the exit code."""
    config = setup.project.sections.data
    if not changed(setup.folders.source, config):
        return 0
    print(f"{config.place} has changed since it was prepared", flush=True)
    return run_dvc(["prepare"], 1, setup, {}, "--force", "--single-item", "prepare")


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
    begin = time.monotonic()
    try:
        setup = load()
        compute = setup.compute
        ours = compute.backend == "ray" and not (os.environ.get("RAY_ADDRESS") or compute.address)
        jobs = jobs_at_once(wanted, setup, ours)
        require_decoder(setup.project)
        if (decoder := setup.project.sections.eval.decoder).path:
            check_decoder(decoder)
        require_files(setup.project.runs.values())
    except ConfigError as error:
        print(f"params.yaml: {error}" if error.path != "JOBS" else error, file=sys.stderr)
        return 2
    if code := prepare_again(setup):
        return code
    todo, kept = plan()
    count = len(todo)
    print(f"{setup.project.workload}: {count} stages to run" + (f": {', '.join(todo)}" if todo else ""), flush=True)
    try:
        with connection(compute, jobs) if compute.backend == "ray" and todo else contextlib.nullcontext() as session:
            shared = {SHARED: session.address} if session and session.own else {}
            code = run(todo, kept, setup, jobs, shared) if todo else 0
    except ComputeError as error:
        print(error, file=sys.stderr)
        code = 1
    if code:
        print("stopped; `cmlab repro` continues from here", file=sys.stderr)
        return code
    print(f"\n{summary(setup)}\n\n{count} stages in {about(time.monotonic() - begin)}")
    return 0
