"""Telling MLflow afterwards what the files of a run say, and nothing that it knows already.

What a run holds is read first, and only what it lacks is sent. So a replay may follow a run that was tracked live, a
server that died half-way, or another replay: every point stands there once.
"""

import itertools
import logging
import math
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from cmcore.config import flatten
from cmcore.edge.mlflow_search import PARENT
from cmcore.edge.mlflow_store import open_run
from cmcore.edge.mlflow_tracker import KEY_LENGTH, PARAM_LENGTH, PARAMS_AT_ONCE, POINTS_AT_ONCE, metric_name

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

T = TypeVar("T")
# Nobody trains meanwhile, so a slow server may take its time; one that does not answer is given up after a minute.
ENVIRONMENT = {
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "3",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}


class TrackingError(RuntimeError):
    """MLflow does not answer, or refuses; the message says so in one sentence."""


class Sent(NamedTuple):
    """How much a run lacked."""

    params: int
    points: int
    files: int


class _Point(NamedTuple):
    key: str
    step: int
    value: float


class Replay:
    """A tracker that keeps what it is told until `send`.

    Args:
        tags: what is known of the run, among it `run` and `fingerprint`, by which it is found.
        parent: the run that this one stands below; it is sent first.
        status: how the run ended; RUNNING leaves a run's state as it is.
    """

    def __init__(self, tags: Mapping[str, str], parent: "Replay | None" = None, status: str = "FINISHED") -> None:
        self.tags = dict(tags)
        self.id = ""  # MLflow's, once it was sent
        self._parent, self._status = parent, status
        self._moment = 0
        self._params: dict[str, str] = {}
        self._points: dict[_Point, int] = {}  # and the millisecond of each
        self._files: dict[Path, str] = {}  # and the folder of each
        self._nonfinite: list[str] = []

    def written_with(self, file: Path) -> None:
        """Metrics told from here on get the time of this file: no clock, so that sending twice is sending the same."""
        self._moment = int(file.stat().st_mtime * 1000)

    def params(self, values: Mapping[str, Any]) -> None:
        self._params |= {metric_name(key): str(value)[:PARAM_LENGTH] for key, value in flatten(values).items()}

    def tag(self, values: Mapping[str, str]) -> None:
        self.tags |= values

    def metrics(self, values: Mapping[str, float], images: int) -> None:
        for name, value in values.items():
            if math.isfinite(value):
                self._points.setdefault(_Point(metric_name(name), images, float(value)), self._moment)
            else:
                self._nonfinite.append(f"{name} at {images}")

    def artifact(self, path: Path, folder: str = "") -> None:
        self._files[path] = folder

    def close(self, failed: bool = False) -> None: ...

    def send(self, uri: str, experiment: str) -> Sent:
        """Make the run complete, or make it where it is missing.

        Raises:
            TrackingError: the server does not answer, or refuses.
        """
        for key, value in ENVIRONMENT.items():
            os.environ.setdefault(key, value)
        from mlflow.exceptions import MlflowException

        logging.getLogger("urllib3").setLevel(logging.ERROR)  # it announces every new attempt
        if self._nonfinite:
            self.tags["nonfinite"] = ", ".join(self._nonfinite)[:KEY_LENGTH]
        if self._parent is not None:
            self.tags[PARENT] = self._parent.id
        try:
            client, run, _ = open_run(uri, experiment, self.tags["run"], self.tags, running=False)
            self.id = run.info.run_id
            return self._complete(client, run)
        except (MlflowException, OSError) as error:
            reason = " ".join(str(error).split())[:300]
            raise TrackingError(f"MLflow at {uri} did not take run {self.tags['run']}: {reason}") from error

    def _complete(self, client: "MlflowClient", run: "Run") -> Sent:
        from mlflow.entities import Metric, Param

        name = run.info.run_id
        params = [Param(*pair) for pair in self._params.items() if pair[0] not in run.data.params]
        for some in _groups(params, PARAMS_AT_ONCE):
            client.log_batch(name, params=some)
        held = _held(client, run, {point.key for point in self._points})
        points = [Metric(p.key, p.value, at, p.step) for p, at in self._points.items() if p not in held]
        for some in _groups(points, POINTS_AT_ONCE):
            client.log_batch(name, metrics=some)
        # New points come from new files, which may well be as long as the old ones.
        sizes = {} if points else _sizes(client, name, set(self._files.values()))
        files = {path: to for path, to in self._files.items() if sizes.get((to, path.name)) != path.stat().st_size}
        for path, folder in files.items():
            client.log_artifact(name, str(path), folder or None)
        if self._status not in ("RUNNING", run.info.status):
            client.set_terminated(name, self._status)
        return Sent(len(params), len(points), len(files))


def _groups(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """The items, as many at a time as one request can carry."""
    remaining = iter(items)
    while group := list(itertools.islice(remaining, size)):
        yield group


def _held(client: "MlflowClient", run: "Run", keys: set[str]) -> set[_Point]:
    """The points under these keys that the run has."""
    histories = (client.get_metric_history(run.info.run_id, key) for key in sorted(keys & run.data.metrics.keys()))
    return {_Point(metric.key, metric.step, metric.value) for history in histories for metric in history}


def _sizes(client: "MlflowClient", run: str, folders: set[str]) -> dict[tuple[str, str], int | None]:
    """Folder and name -> bytes of the artifacts that the run has in these folders."""
    found = ((folder, entry) for folder in sorted(folders) for entry in client.list_artifacts(run, folder or None))
    return {(folder, PurePosixPath(entry.path).name): entry.file_size for folder, entry in found}
