"""The MLflow tracker: a view of a run that can neither stall nor kill it.

Everything is queued and sent by one background thread, in batches. A server that is down or slow costs the run nothing;
what it did not take in time is counted, and said once.
"""

import itertools
import logging
import math
import queue
import re
import threading
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from cmcore.config import flatten
from cmcore.edge.mlflow_store import open_run, store_uri
from cmcore.edge.settings import TrackingConfig

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

logger = logging.getLogger(__name__)
T = TypeVar("T")

PARAM_LENGTH, KEY_LENGTH, PARAMS_AT_ONCE, TAGS_AT_ONCE, POINTS_AT_ONCE = 6000, 250, 100, 100, 1000  # MLflow's limits
REFUSED = ("INVALID_PARAMETER_VALUE", "BAD_REQUEST")  # sending the same again would not help


class _Point(NamedTuple):
    key: str
    value: float
    timestamp: int
    step: int


class _Artifact(NamedTuple):
    path: Path
    folder: str


class _Param(NamedTuple):
    key: str
    value: str


class _Tag(NamedTuple):
    key: str
    value: str


_Item = _Point | _Artifact | _Param | _Tag


def metric_name(name: str) -> str:
    """A name that MLflow accepts: other characters become underscores, slashes stay as groups."""
    parts = [part.strip(" .") for part in re.sub(r"[^\w\-. /]", "_", name, flags=re.ASCII).split("/")]
    return ("/".join(part for part in parts if part) or "_")[:KEY_LENGTH]


class MlflowTracker:
    """Logs one run to MLflow; a run with the same `run` and `fingerprint` tags is continued, not doubled.

    Args:
        config: the `tracking` section.
        workload: names the experiment where the section does not.
        name: of the run.
        tags: among them `run` and `fingerprint`.
        root: the folder that holds `.tracking`.
        capacity: items that may wait; more are dropped and counted.
        patience: seconds that `close` may take.
        pause: seconds between two attempts at a server that failed.
    """

    def __init__(
        self, config: TrackingConfig, *, workload: str, name: str, tags: Mapping[str, str], root: Path = Path(),
        capacity: int = 20_000, patience: float = 15.0, pause: float = 10.0,
    ) -> None:  # fmt: skip
        self._uri = store_uri(config, root)
        self._open = lambda: open_run(self._uri, config.experiment or workload, name, tags)
        self._queue: queue.Queue[_Item] = queue.Queue(capacity)
        self._patience, self._pause = patience, pause
        self._closing, self._failed = threading.Event(), False
        self._nonfinite: list[str] = []
        self.dropped = 0
        self._error = ""
        self._thread = threading.Thread(target=self._work, name="mlflow", daemon=True)
        self._thread.start()

    def params(self, values: Mapping[str, Any]) -> None:
        for key, value in flatten(values).items():
            self._put(_Param(metric_name(key), str(value)[:PARAM_LENGTH]))

    def tag(self, values: Mapping[str, str]) -> None:
        for key, value in values.items():
            self._put(_Tag(metric_name(key), value))

    def metrics(self, values: Mapping[str, float], images: int) -> None:
        now = int(time.time() * 1000)
        for name, value in values.items():
            if math.isfinite(value):
                self._put(_Point(metric_name(name), float(value), now, images))
            else:
                self._nonfinite.append(f"{name} at {images}")

    def artifact(self, path: Path, folder: str = "") -> None:
        self._put(_Artifact(Path(path), folder))

    def close(self, failed: bool = False) -> None:
        self._failed = failed
        self._closing.set()
        self._thread.join(self._patience)
        self.dropped += self._queue.qsize()
        if self.dropped or self._thread.is_alive() or self._error:
            logger.warning(
                "MLflow at %s did not take everything (%d items dropped; %s); the files of the run are complete",
                self._uri, self.dropped, self._error or "it is too slow",
            )  # fmt: skip

    def _put(self, item: _Item) -> None:
        try:
            self._queue.put_nowait(item)
        except queue.Full:
            self.dropped += 1

    def _work(self) -> None:
        """The background thread: connect, send until told to close, end the run."""
        session = self._until_closed(lambda: _Session(*self._open()))
        waiting: list[_Item] = []
        while session is not None:
            waiting += self._take()
            last = self._closing.is_set() and self._queue.empty()
            while waiting:
                group = alike(waiting)
                sent = self._until_closed(partial(session.send, group))
                self.dropped += 0 if sent else len(group)
                del waiting[: len(group)]
            if last:
                self._until_closed(partial(session.end, self._failed, self._nonfinite))
                return

    def _take(self) -> list[_Item]:
        """What has come in; waits for up to a second, so that points gather into batches."""
        self._closing.wait(1.0)
        return [self._queue.get_nowait() for _ in range(self._queue.qsize())]

    def _until_closed(self, attempt: Callable[[], T]) -> T | None:
        """Repeat `attempt` until it succeeds; None once the run is closing, or where repeating would not help."""
        while True:
            try:
                result = attempt()
            except Exception as error:  # whatever a service does, the run goes on
                self._error = " ".join(str(error).split())[:200]
                hopeless = isinstance(error, FileNotFoundError) or getattr(error, "error_code", "") in REFUSED
                if hopeless or self._closing.wait(self._pause):
                    return None
            else:
                self._error = self._error if self.dropped else ""
                return result


def alike(items: list[_Item]) -> list[_Item]:
    """The items at the head of the list that one request can carry."""
    limit = {_Param: PARAMS_AT_ONCE, _Tag: TAGS_AT_ONCE, _Point: POINTS_AT_ONCE, _Artifact: 1}[type(items[0])]
    return list(itertools.takewhile(lambda item: type(item) is type(items[0]), items[:limit]))


class _Session:
    """An open run: the only part that talks to MLflow, and only from the background thread."""

    def __init__(self, client: "MlflowClient", run: "Run", reused: bool) -> None:
        self._client, self._id, self._reused = client, run.info.run_id, reused
        self._params = dict(run.data.params)
        self._points: dict[str, set[tuple[int, float]]] = {}

    def send(self, group: list[_Item]) -> bool:
        """Send items of one kind."""
        from mlflow.entities import Metric, Param, RunTag

        for item in group:
            if isinstance(item, _Artifact):
                self._client.log_artifact(self._id, str(item.path), item.folder or None)
        tags = [RunTag(*item) for item in group if isinstance(item, _Tag)]
        params = {i.key: i.value for i in group if isinstance(i, _Param) and i.key not in self._params}
        points = [Metric(*item) for item in group if isinstance(item, _Point) and self._is_new(item)]
        if params or points or tags:
            self._client.log_batch(self._id, points, [Param(*pair) for pair in params.items()], tags)
        self._params |= params
        return True

    def _is_new(self, point: _Point) -> bool:
        """Whether a continued run lacks this point: after a restart some are said a second time."""
        if not self._reused:
            return True
        if point.key not in self._points:
            history = self._client.get_metric_history(self._id, point.key)
            self._points[point.key] = {(metric.step, metric.value) for metric in history}
        return (point.step, point.value) not in self._points[point.key]

    def end(self, failed: bool, nonfinite: list[str]) -> None:
        """Close the run; names that were not finite numbers become a tag, as MLflow cannot hold the values."""
        if nonfinite:
            self._client.set_tag(self._id, "nonfinite", ", ".join(nonfinite)[:KEY_LENGTH])
        self._client.set_terminated(self._id, "FAILED" if failed else "FINISHED")
