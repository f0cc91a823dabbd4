"""The live MLflow tracker: a view of a run that can neither stall nor kill it.

Everything is queued, and sent by one background thread, in batches. A server that is down or slow costs the run
nothing; what it did not take in time is counted, and said once.
"""

import logging
import threading
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from cmcore.config import flatten
from cmcore.edge.mlflow_writer import RunState, Store, Writer

logger = logging.getLogger(__name__)
T = TypeVar("T")
REFUSED = ("INVALID_PARAMETER_VALUE", "BAD_REQUEST")  # sending the same again would not help


class MlflowTracker:
    """Logs one run to MLflow; a run with the same `run` and `fingerprint` tags is continued, not doubled.

    Args:
        store: where runs are kept.
        tags: among them `run`, its name, and `fingerprint`.
        capacity: items that may wait; more are dropped and counted.
        patience: seconds that `close` may take.
        pause: seconds between two attempts at a server that failed.
    """

    def __init__(
        self, store: Store, tags: Mapping[str, str], *, capacity: int = 20_000, patience: float = 15.0,
        pause: float = 10.0,
    ) -> None:  # fmt: skip
        self._store, self._tags = store, dict(tags)
        self._capacity, self._patience, self._pause = capacity, patience, pause
        self._waiting, self._lock = RunState(), threading.Lock()
        self._closing = threading.Event()
        self.dropped = 0
        self._error = ""
        self._thread = threading.Thread(target=self._work, name="mlflow", daemon=True)
        self._thread.start()

    def params(self, values: Mapping[str, Any]) -> None:
        flat = flatten(values)
        self._keep(len(flat), lambda: self._waiting.params(flat))

    def tag(self, values: Mapping[str, str]) -> None:
        self._keep(len(values), lambda: self._waiting.tag(values))

    def metrics(self, values: Mapping[str, float], images: int) -> None:
        self._keep(len(values), lambda: self._waiting.metrics(values, images))

    def artifact(self, path: Path, folder: str = "") -> None:
        self._keep(1, lambda: self._waiting.artifact(path, folder))

    def close(self, failed: bool = False) -> None:
        with self._lock:
            self._waiting.close(failed)
        self._closing.set()
        self._thread.join(self._patience)
        self.dropped += len(self._waiting) - bool(self._waiting.status)
        if self.dropped or self._thread.is_alive() or self._error:
            logger.warning(
                "MLflow at %s did not take everything (%d items dropped; %s); the files of the run are complete",
                self._store.uri, self.dropped, self._error or "it is too slow",
            )  # fmt: skip

    def _keep(self, items: int, say: Callable[[], None]) -> None:
        with self._lock:
            if len(self._waiting) + items > self._capacity:
                self.dropped += items
            else:
                say()

    def _take(self) -> RunState:
        """The items since the last call; waits for up to a second, so that points gather into batches."""
        self._closing.wait(1.0)
        with self._lock:
            taken, self._waiting = self._waiting, RunState()
            self._waiting.nonfinite = taken.nonfinite
        return taken

    def _work(self) -> None:
        """The background thread: connect, send until the run closes, end it."""
        writer = self._until_closed(self._open)
        while writer is not None:
            taken = self._take()
            for part in taken.requests():
                if self._until_closed(partial(writer.update, part)) is None:
                    self.dropped += len(part) - bool(part.status)
            if taken.status:
                return

    def _open(self) -> Writer:
        writer = Writer(self._store, self._tags, again=True)
        for part in RunState(self._tags, "RUNNING").requests():
            writer.update(part)
        return writer

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
