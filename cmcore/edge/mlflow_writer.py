"""The one writer of MLflow: it brings a run up to a state, while it is trained and from its files alike.

The content of a run is read first, and only the missing part is sent. So the same may be sent again, by a process that
resumes, after a server that died half-way, or from files: every point is there once.

Any number of processes may write to one store. A fresh sqlite store fails in every process that opens it at the same
moment, and `set_experiment` sends runs astray: so the database, the experiment and the run are made under one file
lock, and found again by name or by tag afterwards.
"""

import fcntl
import hashlib
import itertools
import json
import logging
import math
import os
import re
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from cmcore.config import flatten
from cmcore.edge.settings import TrackingConfig
from cmcore.errors import reason

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import DatasetInput, Experiment, Run

logger = logging.getLogger(__name__)
T = TypeVar("T")

FOLDER = Path(".tracking")
SQLITE = "sqlite:///"
SPECIAL = re.compile(r"[?#%]")
PARENT = "mlflow.parentRunId"  # by this tag MLflow shows one run below another
NAME, NOTE = "mlflow.runName", "mlflow.note.content"  # what a run is called, and its description
STEPPED = "samples"  # the folder of images that MLflow shows one after the other, each named by the images seen
PARAM_LENGTH, KEY_LENGTH, PARAMS_AT_ONCE, TAGS_AT_ONCE, POINTS_AT_ONCE = 6000, 250, 100, 100, 1000  # MLflow's limits
DIGEST_LENGTH = 36  # likewise, of a data set's
# MLflow's own defaults let one call wait for four minutes; telemetry would write to the user's home.
ENVIRONMENT = {
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "5",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_ARTIFACT_UPLOAD_DOWNLOAD_TIMEOUT": "30",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
}
# Where nothing trains meanwhile, a slow server may take its time; one that does not answer is given up after a minute.
PATIENT = {
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "3",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}


class TrackingError(RuntimeError):
    """MLflow does not answer, or refuses; the message says so in one sentence."""


class Store(NamedTuple):
    """The URI of a store of runs, and the experiment in it."""

    uri: str
    experiment: str

    @classmethod
    def of(cls, config: TrackingConfig, root: Path, workload: str) -> "Store":
        """MLFLOW_TRACKING_URI, else `tracking.uri`, else a database below `root`; the experiment of the workload."""
        path = (root / FOLDER / "mlflow.db").resolve()
        # Of characters with a meaning in addresses, the path from the project folder has none.
        near = SPECIAL.search(str(path)) and root.resolve() == Path.cwd()
        own = f"sqlite:///{path.relative_to(root.resolve()) if near else path}"
        uri = os.environ.get("MLFLOW_TRACKING_URI") or config.uri or own
        return cls(uri, config.experiment or workload)

    @property
    def searches(self) -> "Store":
        """Where searches are kept, which would stand between the runs otherwise."""
        return Store(self.uri, f"{self.experiment} searches")


class Sent(NamedTuple):
    """Numbers of parameters, points and files that a run lacked."""

    params: int = 0
    points: int = 0
    files: int = 0


class Point(NamedTuple):
    """A value of a metric; `step` is what the user sees it over."""

    key: str
    step: int
    value: float


class Data(NamedTuple):
    """A data set that a run has seen."""

    name: str
    digest: str  # of the images
    context: str  # training, or evaluation
    facts: str  # JSON: what is known of it


class RunState:
    """The state that a run in MLflow is to have: a tracker that only collects.

    Args:
        tags: among those of a whole run are `run`, its name, and `fingerprint`, by which it is found.
        status: RUNNING, or how the run ended; empty: what the run has.
        parent: the run that this one stands below; it is written first.
        moment: milliseconds since 1970 of the metrics; None: the clock's.
    """

    def __init__(
        self, tags: Mapping[str, str] | None = None, status: str = "", parent: "RunState | None" = None,
        moment: int | None = None,
    ) -> None:  # fmt: skip
        self.id = ""  # MLflow's, once it was written
        self.tags, self.status, self.parent, self.moment = dict(tags or {}), status, parent, moment
        self.values: dict[str, str] = {}
        self.points: dict[Point, int] = {}  # and the moment of each
        self.files: dict[Path, str] = {}  # and the folder of each
        self.data: dict[Data, None] = {}
        self.nonfinite = ""  # names of metrics that were no finite numbers, as MLflow cannot hold the values

    def __len__(self) -> int:
        return sum(map(len, (self.tags, self.values, self.points, self.files, self.data))) + bool(self.status)

    def params(self, values: Mapping[str, Any]) -> None:
        self.values |= {metric_name(key): str(value)[:PARAM_LENGTH] for key, value in flatten(values).items()}

    def tag(self, values: Mapping[str, str]) -> None:
        self.tags |= {metric_name(key): value for key, value in values.items()}

    def metrics(self, values: Mapping[str, float], images: int) -> None:
        moment = int(time.time() * 1000) if self.moment is None else self.moment
        for name, value in values.items():
            if math.isfinite(value):
                self.points.setdefault(Point(metric_name(name), images, float(value)), moment)
            else:
                self.nonfinite = ", ".join(filter(None, [self.nonfinite, f"{name} at {images}"]))[:KEY_LENGTH]
                self.tags["nonfinite"] = self.nonfinite

    def artifact(self, path: Path, folder: str = "") -> None:
        self.files[Path(path)] = folder

    def close(self, failed: bool = False) -> None:
        self.status = "FAILED" if failed else "FINISHED"

    def requests(self) -> "Iterator[RunState]":
        """The state in parts, each of one kind and small enough for one request."""
        parts: list[tuple[str, dict[Any, Any], int]] = [
            ("tags", self.tags, TAGS_AT_ONCE),
            ("values", self.values, PARAMS_AT_ONCE),
            ("points", self.points, POINTS_AT_ONCE),
            ("files", self.files, 1),
            ("data", self.data, 1),
        ]
        for name, content, limit in parts:
            for some in _groups(content.items(), limit):
                part = RunState()
                setattr(part, name, dict(some))
                yield part
        if self.status:
            yield RunState(status=self.status)

    def send(self, store: Store, *, again: bool = False) -> Sent:
        """Make the run complete, or make it where it is missing.

        Args:
            store: where it is.
            again: see `Writer`.

        Raises:
            TrackingError: the server does not answer, or refuses.
        """
        if self.parent is not None:
            self.tags[PARENT] = self.parent.id
        try:
            writer = Writer(store, self.tags, again=again)
            self.id = writer.id
            return total([writer.update(part) for part in self.requests()])
        except Exception as error:  # of MLflow, SQLAlchemy, alembic, requests or sqlite, for whatever is wrong there
            why = f"{reason(error, 300)}; runs are complete without it, and `cmlab sync` sends them again"
            raise TrackingError(f"MLflow at {store.uri} did not take run {self.tags['run']}: {why}") from error


class Writer:
    """An open run, with what it is known to hold.

    Args:
        store: where it is.
        tags: `run` and `fingerprint` find it; all are those of a run that has to be made.
        again: whether files are sent even where the run has one of that name and size, as what they hold may be new.
    """

    def __init__(self, store: Store, tags: Mapping[str, str], *, again: bool) -> None:
        self._client, run = open_run(store, tags)
        self.id: str = run.info.run_id
        self._again, self._status, self._measured = again, run.info.status, set(run.data.metrics)
        self._tags, self._params = dict(run.data.tags), dict(run.data.params)
        self._data = (
            {(one.dataset.name, one.dataset.digest) for one in run.inputs.dataset_inputs} if run.inputs else set()
        )
        self._points: dict[str, set[Point]] = {}
        self._sizes: dict[str, dict[str, int | None]] = {}

    def update(self, state: RunState) -> Sent:
        """Send what the run lacks of one of the `requests` of a state.

        After an error the same may be sent again: of equal points of one moment MLflow keeps one.
        """
        from mlflow.entities import Metric, Param, RunTag

        tags = {key: value for key, value in state.tags.items() if self._tags.get(key) != value}
        params = {key: value for key, value in state.values.items() if key not in self._params}
        points = [Metric(p.key, p.value, at, p.step) for p, at in state.points.items() if p not in self._held(p.key)]
        if tags or params or points:
            pairs = [RunTag(*pair) for pair in tags.items()]
            self._client.log_batch(self.id, points, [Param(*pair) for pair in params.items()], pairs)
        self._tags |= tags
        self._params |= params
        self._again |= bool(points)  # new points come from new files, which may well be as long as the old ones
        files = {path: to for path, to in state.files.items() if self._again or not self._has(path, to)}
        for path, folder in files.items():
            self._client.log_artifact(self.id, str(path), folder or None)
            if folder == STEPPED and path.stem.isdecimal():
                self._show(path, int(path.stem))
        for data in state.data:
            if (data.name, data.digest[:DIGEST_LENGTH]) not in self._data:
                self._client.log_inputs(self.id, [_entity(data)])
        if state.status not in ("", self._status):
            end = self._client.update_run if state.status == "RUNNING" else self._client.set_terminated
            end(self.id, state.status)
            self._status = state.status
        return Sent(len(params), len(points), len(files))

    def _show(self, path: Path, step: int) -> None:
        """Let MLflow step through the image, unless it does already."""
        from PIL import Image

        if not any(name.startswith(f"{STEPPED}+step+{step}+") for name in self._names("images")):
            with Image.open(path) as image:
                self._client.log_image(self.id, image, key=STEPPED, step=step)

    def _held(self, key: str) -> set[Point]:
        """The points under this key that the run had when it was opened."""
        if key not in self._points:
            known = self._client.get_metric_history(self.id, key) if key in self._measured else []
            self._points[key] = {Point(key, metric.step, metric.value) for metric in known}
        return self._points[key]

    def _has(self, path: Path, folder: str) -> bool:
        """Whether the run holds a file of this name and size."""
        return self._names(folder).get(path.name) == path.stat().st_size

    def _names(self, folder: str) -> dict[str, int | None]:
        """The files in a folder of the run when it was first asked for, and their sizes."""
        if folder not in self._sizes:
            entries = self._client.list_artifacts(self.id, folder or None)
            self._sizes[folder] = {PurePosixPath(entry.path).name: entry.file_size for entry in entries}
        return self._sizes[folder]


def _entity(data: Data) -> "DatasetInput":
    from mlflow.entities import Dataset, DatasetInput, InputTag

    digest, source = data.digest[:DIGEST_LENGTH], json.dumps({"digest": data.digest})
    told = Dataset(data.name, digest, source_type="local", source=source, profile=data.facts)
    return DatasetInput(told, [InputTag("mlflow.data.context", data.context)])


def total(parts: Iterable[Sent]) -> Sent:
    """All of them together."""
    return Sent(*(sum(column) for column in zip(*parts, strict=True)))


def metric_name(name: str) -> str:
    """A name that MLflow accepts: other characters become underscores, slashes stay as groups."""
    parts = [part.strip(" .") for part in re.sub(r"[^\w\-. /]", "_", name, flags=re.ASCII).split("/")]
    return ("/".join(part for part in parts if part) or "_")[:KEY_LENGTH]


def wait_longer() -> None:
    """Let the calls of this process wait as long as `PATIENT` says; variables that are set already stay."""
    for key, value in PATIENT.items():
        os.environ.setdefault(key, value)
    logging.getLogger("urllib3").setLevel(logging.ERROR)  # it announces every new attempt


def open_run(store: Store, tags: Mapping[str, str]) -> tuple["MlflowClient", "Run"]:
    """A client, and the run with these tags' `run` and `fingerprint`, made with all of them if there is none."""
    for key, value in ENVIRONMENT.items():
        os.environ.setdefault(key, value)
    from mlflow import MlflowClient

    from cmcore.edge.mlflow_database import prepare_database

    # After the import, which sets up loggers of its own.
    for chatty in ("alembic", "mlflow"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)  # tracebacks of errors that it raises as well

    with _lock(store.uri):
        if store.uri.startswith(SQLITE):
            prepare_database(Path(store.uri.removeprefix(SQLITE)))
        client = MlflowClient(tracking_uri=store.uri)
        group = _experiment(client, store)
        wanted = " and ".join(f"tags.{key} = '{tags[key]}'" for key in ("fingerprint", "run"))
        found = client.search_runs([group.experiment_id], wanted, max_results=1, order_by=["attributes.start_time ASC"])
        made = (
            None
            if found
            else client.create_run(group.experiment_id, tags=dict(tags), run_name=tags.get(NAME, tags["run"]))
        )
        return client, made or found[0]


@contextmanager
def _lock(uri: str) -> Iterator[None]:
    """One process of this machine at a time; the kernel lets go of the lock when its holder dies."""
    if uri.startswith(SQLITE):
        path = Path(uri.removeprefix(SQLITE)).with_suffix(".lock")
    else:
        digest = hashlib.sha256(uri.encode()).hexdigest()[:16]
        path = Path(tempfile.gettempdir()) / f"mlflow-{os.getuid()}-{digest}.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _experiment(client: "MlflowClient", store: Store) -> "Experiment":
    own = None
    if store.uri.startswith(SQLITE):
        own = Path(store.uri.removeprefix(SQLITE)).resolve().parent / "artifacts"
    found = client.get_experiment_by_name(store.experiment)
    if found is None:
        location = own.as_uri() if own else None
        return client.get_experiment(client.create_experiment(store.experiment, artifact_location=location))
    if found.lifecycle_stage == "deleted":
        client.restore_experiment(found.experiment_id)
    if own and found.artifact_location != own.as_uri():
        _warn_of_move(own.parent, found.artifact_location)
    return found


@cache
def _warn_of_move(folder: Path, artifacts: str | None) -> None:
    """Once, and not for every run."""
    logger.warning("%s was moved, artifacts go to %s; delete it to start anew", folder, artifacts)


def _groups(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """The items, at most `size` at a time."""
    remaining = iter(items)
    while group := list(itertools.islice(remaining, size)):
        yield group
