"""Stages that have to run, and estimates of how long they take."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from cmcore.assemble.project import Project
from cmcore.atomic import write_atomic

# Seconds a unit of work takes where nothing was measured yet, on two CPU cores; and what it costs to start a process.
GUESS = {"prepare": 1.0, "reference": 15.0, "train": 1.5e-4, "evaluate": 20.0, "edit": 10.0, "tabulate": 10.0}
STARTING = 5.0
RECORDING = 0.5  # and what it costs to record the results of one
BESIDE = {"evaluate": 10.0, "edit": 5.0}  # seconds that no plan counts: of distances, and of pictures


def units(stage: str, project: Project) -> float:
    """Units of work of a stage: images seen for a training run, none where its weights are read; one for any other."""
    kind, _, name = stage.partition("@")
    if kind != "train":
        return 1.0
    run = project.runs[name]
    return 0.0 if run.weights else float(run.train.total)


def kinds(stage: str, project: Project) -> tuple[str, str]:
    """Keys of the speed of a stage: for stages of its kind with its method, and for all stages of its kind."""
    kind, _, run = stage.partition("@")
    method = project.runs[run].method if run else ""
    return f"{project.workload}/{kind}/{method}", f"{project.workload}/{kind}"


@dataclass
class Speeds:
    """Seconds a unit of work takes on this machine, remembered from run to run.

    A method that was never measured takes what is planned, times what stages of its kind take of their plans; without a
    plan it is as fast as the last stage of its kind.
    """

    path: Path
    seconds: dict[str, float]
    planned: Mapping[str, float] = field(default_factory=dict)  # of stages, or of one of their replicates
    against: dict[str, tuple[float, float]] = field(default_factory=dict)  # by kind: measured, and planned for the same

    @classmethod
    def read(cls, path: Path, planned: Mapping[str, float] | None = None) -> "Speeds":
        """Start from what is remembered; a damaged file is forgotten."""
        try:
            known = {str(key): float(value) for key, value in json.loads(path.read_text()).items()}
        except (OSError, ValueError, AttributeError):
            known = {}
        return cls(path, known, planned or {})

    def learn(self, stage: str, project: Project, seconds: float) -> None:
        """Remember how long the work of a stage took."""
        if not units(stage, project):
            return
        own, general = kinds(stage, project)
        self.seconds[own] = self.seconds[general] = max(seconds, 0.0) / units(stage, project)
        if stage in self.planned:
            measured, planned = self.against.get(general, (0.0, 0.0))
            self.against[general] = measured + max(seconds, 0.0), planned + self._plan(stage)
        write_atomic(self.path, json.dumps(self.seconds, indent=1, sort_keys=True).encode())

    def work(self, stage: str, project: Project) -> float:
        """How long the work of a stage will take, or that of one of its replicates."""
        own, general = kinds(stage, project)
        if own not in self.seconds and stage in self.planned:
            measured, planned = self.against.get(general, (1.0, 1.0))
            return self._plan(stage) * measured / planned
        guess = GUESS[stage.partition("@")[0]]
        return units(stage, project) * self.seconds.get(own, self.seconds.get(general, guess))

    def _plan(self, stage: str) -> float:
        return BESIDE.get(stage.partition("@")[0], 0.0) + self.planned[stage]

    def expected(self, stage: str, project: Project) -> float:
        """How long a stage will take in a process of its own."""
        return STARTING + self.work(stage, project) * project.replicates(stage.partition("@")[2])


def changed_stages(status: Mapping[str, object], parents: Mapping[str, Sequence[str]]) -> list[str]:
    """Stages that will run: those that `dvc status` names, and all that come after them, in order.

    Args:
        status: the keys are stages that differ from the lock file.
        parents: every stage and those it reads from, in an order in which they can run.
    """
    todo: list[str] = []
    for stage, before in parents.items():
        if stage in status or any(parent in todo for parent in before):
            todo.append(stage)
    return todo
