"""The start of every stage: the checked parameters, the folders of the workload, and the trackers of runs."""

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from cmcore.assemble.project import Project, load_project
from cmcore.assemble.run import NONE, RANDOM, Run
from cmcore.closure import revision
from cmcore.config import PARAMS, read
from cmcore.edge.mlflow_tracker import MlflowTracker
from cmcore.edge.mlflow_writer import Store
from cmcore.edge.settings import ComputeConfig, TrackingConfig
from cmcore.errors import DataError
from cmcore.pipeline.sizes import check_sizes, check_workers
from cmcore.pipeline.track import run_tags
from cmcore.search.entries import searches
from cmcore.search.space import TuneConfig
from cmcore.tracking.base import Null, Tracker


@dataclass(frozen=True)
class Folders:
    """Where a workload keeps its files; absolute, as a job may run with another working directory."""

    root: Path
    workload: str

    @property
    def outputs(self) -> Path:
        return self.root / "outputs" / self.workload

    @property
    def code(self) -> Path:
        """Digests of the code and the files of every stage."""
        return self.outputs / "code"

    @property
    def data(self) -> Path:
        return self.outputs / "data"

    @property
    def manifest(self) -> Path:
        """Names the data's digest, so it stands for all images."""
        return self.data / "manifest.json"

    @property
    def reference(self) -> Path:
        return self.outputs / "reference"

    @property
    def runs(self) -> Path:
        return self.outputs / "runs"

    @property
    def samples(self) -> Path:
        return self.outputs / "samples"

    @property
    def edits(self) -> Path:
        return self.outputs / "edits"

    @property
    def times(self) -> Path:
        """Wall times of runs: beside their results, which are the same whenever they are made."""
        return self.outputs / "times"

    @property
    def sampling_times(self) -> Path:
        """Speeds of sampling, likewise."""
        return self.times / "sampling"

    @property
    def reports(self) -> Path:
        return self.root / "reports" / self.workload

    @property
    def work(self) -> Path:
        """Resumable checkpoints: outside DVC's outputs, for DVC deletes those before it runs a stage."""
        return self.root / ".work"

    def run(self, name: str, replicate: int = 0) -> Path:
        """The results of a replicate of a run."""
        return self.seeds(name) / str(replicate) if replicate else self.runs / name

    def seeds(self, name: str) -> Path:
        """The results of the other replicates of a run, and the list of all training seeds."""
        return self.runs / name / "seeds"

    def weights(self, run: str, replicate: int = 0) -> Path:
        return self.run(run, replicate) / "weights.safetensors"

    def maker(self, path: Path) -> str:
        """The stage with this path among its outputs."""
        kind, *rest = path.relative_to(self.outputs).parts
        if kind == "runs" and rest[0] not in (RANDOM, NONE):
            return f"train@{rest[0]}"
        return "reference" if kind == "reference" else "prepare"

    def require(self, paths: Iterable[Path]) -> None:
        """A DataError where an input of a stage is missing; it names the stage that makes it.

        An empty folder counts as missing: DVC empties the outputs of a stage that it starts.
        """
        for path in paths:
            if not path.exists() or (path.is_dir() and not any(path.iterdir())):
                raise DataError(f"{path.relative_to(self.root)} is not there; first run `dvc repro {self.maker(path)}`")


@dataclass(frozen=True)
class Setup:
    """The checked parameter file."""

    project: Project
    searches: dict[str, TuneConfig]
    compute: ComputeConfig
    tracking: TrackingConfig
    folders: Folders

    def weights(self, name: str, replicate: int) -> Path:
        """The weight file from another run for a replicate: that of the same replicate, or of the only one."""
        return self.folders.weights(name, replicate if self.project.replicates(name) > 1 else 0)

    def replicate_of(self, run: Run) -> int:
        """Which replicate a run is, by its training seed."""
        return run.train.seed - self.project.run(run.name).train.seed

    @contextmanager
    def tracker(self, run: Run, fingerprint: str) -> Iterator[Tracker]:
        """The tracker of a run for the time of the block; training and evaluation continue the same one."""
        if not self.tracking.mlflow:
            yield Null()
            return
        manifest = json.loads(self.folders.manifest.read_text(encoding="utf-8"))
        tags = {
            **run_tags(self.project.workload, run.name, run.method, fingerprint),
            "git_revision": revision(),
            "data_digest": manifest["sha256"][:16],
            "init": run.init,
            "teacher": run.teacher,
            "ema": run.train.eval_ema,
            "seed": str(run.train.seed),
            "replicate": str(self.replicate_of(run)),
        }
        with self.tracking_as(tags) as tracker:
            yield tracker

    @contextmanager
    def tracking_as(self, tags: Mapping[str, str]) -> Iterator[Tracker]:
        """The tracker of the run with these tags, of which `run` is its name."""
        if not self.tracking.mlflow:
            yield Null()
            return
        tracker = MlflowTracker(Store.of(self.tracking, self.folders.root, self.project.workload), tags)
        try:
            yield tracker
        except BaseException:
            tracker.close(failed=True)
            raise
        tracker.close()


def load(root: Path | None = None) -> Setup:
    """Read and check the whole parameter file of the project folder, by default the working directory.

    Raises:
        ConfigError: with the dotted path of the first wrong value.
    """
    root = (root or Path()).resolve()
    project = load_project(root / PARAMS)
    check_sizes(project)
    setup = Setup(
        project=project,
        searches=searches(project),
        compute=read(ComputeConfig, project.sections.compute, "compute"),
        tracking=read(TrackingConfig, project.sections.tracking, "tracking"),
        folders=Folders(root, project.workload),
    )
    check_workers(project, setup.compute)
    return setup
