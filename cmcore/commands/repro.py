"""`cmlab repro`: check the parameters, announce the stages to run, run them, and show the result."""

import contextlib
import json
import os
import sys
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING

from cmcore.assemble.checks import require_files
from cmcore.assemble.project import require_decoder
from cmcore.budget.passes import check_labels
from cmcore.commands.before import before
from cmcore.commands.programs import environment
from cmcore.config import ConfigError
from cmcore.data.sources.pool import cores
from cmcore.edge.autoencoder import check_decoders
from cmcore.edge.mlflow_writer import TrackingError
from cmcore.edge.ray_session import SHARED, ComputeError, connection
from cmcore.edge.text import check_text
from cmcore.evaluate.shipped import shipped_source
from cmcore.layers.classifier import SHIPPED
from cmcore.numbers import about
from cmcore.pipeline.common import Setup, load
from cmcore.pipeline.fit import Fit
from cmcore.pipeline.grow import longer
from cmcore.pipeline.parallel import compute_stages, is_computed
from cmcore.pipeline.process import tell
from cmcore.pipeline.progress import listener, pipeline
from cmcore.pipeline.repository import Repository
from cmcore.pipeline.sizes import check_data, check_disk, count_parameters
from cmcore.pipeline.speeds import STARTING, Speeds

if TYPE_CHECKING:
    from cmcore.pipeline.live import View

LAST = "tabulate"


class Driver:
    """One run of the pipeline: `prepare` and `tabulate` are run by DVC, the stages between them here.

    Args:
        setup: the parameters.
        jobs: how many stages are computed at a time.
        yes: whether to begin in any case, also where memory or time do not seem to suffice.
    """

    def __init__(self, setup: Setup, jobs: int, yes: bool = False) -> None:
        self._setup, self._jobs, self._yes, self._fit = setup, jobs, yes, Fit()
        self._repository = Repository(setup)
        self._speeds = Speeds.read(setup.folders.work / "speeds.json")
        self._todo, self._total = list[str](), 0
        self._view: View | None = None

    def run(self) -> int:
        """Run every stage that has changed; the result is their number.

        Raises:
            ComputeError: a stage failed; those that do not need it are done.
        """
        setup = self._setup
        self._repository.mend(tell)
        self._repository.reproduce("code", environment())
        self._todo, restored = self._repository.plan(LAST, tell)
        self._total = len(self._todo)
        names = f": {', '.join(self._todo)}" if self._todo else ""
        print(f"{setup.project.workload}: {self._total} stages to run{names}", flush=True)
        for line in longer(setup.project, setup.folders) if self._todo else ():
            print(line, flush=True)
        for stage in restored:
            self._say(f"{stage}: restored", stage)
        if computed := [stage for stage in self._todo if is_computed(stage)]:
            check_disk(setup.project, setup.folders.root, computed, count_parameters(setup.project))
            self._fit = before(setup, computed, self._jobs, self._speeds, yes=self._yes)
        if self._todo:
            ray = setup.compute.backend == "ray"
            with (
                pipeline(setup.project.workload, self._todo) as self._view,
                connection(setup.compute, self._jobs) if ray else contextlib.nullcontext() as session,
            ):
                shared = {SHARED: session.address} if session and session.own else {}
                self._run_all(environment(**shared))
        return self._total

    def _run_all(self, variables: Mapping[str, str]) -> None:
        if "prepare" in self._todo:
            before = self._images()
            self._by_dvc("prepare", variables)
            if before[0] and (now := self._images()) != before:
                print(
                    f"other images than before ({now[0]}, and {before[0]} then): every run is trained from the start, "
                    "as the order in which it meets them depends on all of them", flush=True,
                )  # fmt: skip
        if computed := [stage for stage in self._todo if is_computed(stage)]:
            check_data(self._setup.project, json.loads(self._setup.folders.manifest.read_bytes()))
            print(f"{len(computed)} stages, up to {self._jobs} at a time", flush=True)
            compute_stages(
                self._setup, computed, self._jobs, self._repository.record,
                self._computed, self._expect, self._fit, self._speeds,
            )  # fmt: skip
        if LAST in self._todo:
            self._by_dvc(LAST, variables)

    def _images(self) -> tuple[int, str]:
        """Number and digest of the prepared images, none where there are none."""
        try:
            manifest = json.loads(self._setup.folders.manifest.read_bytes())
            return manifest["count"], manifest["sha256"]
        except (OSError, ValueError, KeyError):
            return 0, ""

    def _by_dvc(self, stage: str, variables: Mapping[str, str]) -> None:
        rest = sum(self._speeds.expected(name, self._setup.project) for name in self._todo)
        self._expect(rest)
        self._say(f"{stage}, about {about(rest)} left", stage)
        start = time.monotonic()
        with listener(stage, "") if self._view else contextlib.nullcontext():  # else the process speaks for itself
            self._repository.reproduce(stage, variables)
        self._recorded(stage)
        self._speeds.learn(stage, self._setup.project, time.monotonic() - start - STARTING)

    def _computed(self, stage: str, left: float) -> None:
        self._recorded(stage)
        self._say(f"{stage}, about {about(left)} left", stage)

    def _expect(self, left: float) -> None:
        if self._view:
            self._view.left(left)

    def _recorded(self, stage: str) -> None:
        if self._view:
            self._view.recorded(stage)

    def _say(self, text: str, stage: str) -> None:
        self._todo.remove(stage)
        print(f"[{self._total - len(self._todo)}/{self._total}] {text}", flush=True)


def summary(setup: Setup) -> str:
    """The comparison at a glance, and where everything is."""
    reports = setup.folders.reports.relative_to(setup.folders.root)
    return "\n".join(
        (
            (setup.folders.reports / "tables" / "headline.md").read_text(encoding="utf-8"),
            f"Report   {reports / 'index.html'}",
            f"Figures  {reports / 'figures'}/",
            f"Tables   {reports / 'tables'}/ (Markdown, CSV, LaTeX)",
            f"MLflow   {'cmlab ui' if setup.tracking.mlflow else 'off (tracking.mlflow)'}",
        )
    )


def jobs_at_once(wanted: str, setup: Setup, ours: bool) -> int:
    """JOBS as a number; `auto` is as many as the cores of this machine carry, or all that a cluster takes.

    Raises:
        ConfigError: it is neither.
    """
    if wanted == "auto":
        if setup.compute.backend != "ray":
            return 1
        return (
            max(1, cores() // setup.compute.threads)
            if ours
            else len(setup.project.runs) * setup.project.sections.replicates
        )
    if not (wanted.isdecimal() and int(wanted) >= 1):
        raise ConfigError("JOBS", f"expected auto or a whole number of at least 1, got {wanted!r}")
    return int(wanted)


def tell_mlflow(setup: Setup) -> None:
    """Put the runs of the tables together in MLflow; it is a view, so one that fails is a line."""
    if not setup.tracking.mlflow:
        return
    from cmcore.commands.sync import sync

    try:
        sync(setup, patient=False)
    except TrackingError as error:
        tell(str(error))


def main(wanted: str = "auto", *, yes: bool = False) -> int:
    """Everything; the result is the exit code."""
    begin = time.monotonic()
    try:
        setup = load()
        compute = setup.compute
        ours = compute.backend == "ray" and not (os.environ.get("RAY_ADDRESS") or compute.address)
        jobs = jobs_at_once(wanted, setup, ours)
        require_decoder(setup.project)
        check_decoders(setup.project.sections.data, setup.project.sections.eval.decoder)
        check_text(setup.project.sections.data)
        if setup.project.sections.eval.extractor == SHIPPED:
            shipped_source(setup.project.workload)
        require_files(setup.project.runs.values())
        check_labels(setup.project.runs.values())
    except ConfigError as error:
        print(f"params.yaml: {error}" if error.path != "JOBS" else error, file=sys.stderr)
        return 2
    try:
        count = Driver(setup, jobs, yes).run()
    except ConfigError as error:
        print(f"params.yaml: {error}", file=sys.stderr)
        return 2
    except ComputeError as error:
        print(f"{error}\nstopped; `cmlab repro` continues from here", file=sys.stderr)
        return 1
    if count:
        tell_mlflow(setup)
    print(f"\n{summary(setup)}\n\n{count} stages in {about(time.monotonic() - begin)}")
    return 0
