"""The tracker protocol, and the trackers that need no third party."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol


class Tracker(Protocol):
    """Receives what a run has to say. No method may raise for a fault of a service behind it, nor wait for one."""

    def params(self, values: Mapping[str, Any]) -> None:
        """The parameters of the run: dotted name -> value."""
        ...

    def tag(self, values: Mapping[str, str]) -> None:
        """Tags to find the run by: name -> text. A later text takes the place of an earlier one."""
        ...

    def metrics(self, values: Mapping[str, float], images: int) -> None:
        """Numbers measured after `images` images were seen."""
        ...

    def artifact(self, path: Path, folder: str = "") -> None:
        """A file worth keeping beside the run, below `folder`."""
        ...

    def close(self, failed: bool = False) -> None:
        """End of the run; nothing may be said afterwards."""
        ...


class Null:
    """Says nothing."""

    def params(self, values: Mapping[str, Any]) -> None: ...

    def tag(self, values: Mapping[str, str]) -> None: ...

    def metrics(self, values: Mapping[str, float], images: int) -> None: ...

    def artifact(self, path: Path, folder: str = "") -> None: ...

    def close(self, failed: bool = False) -> None: ...


class Tee:
    """Says everything to every tracker, in their order: put the one that must not miss anything first."""

    def __init__(self, trackers: Sequence[Tracker]) -> None:
        self.trackers = tuple(trackers)

    def params(self, values: Mapping[str, Any]) -> None:
        for tracker in self.trackers:
            tracker.params(values)

    def tag(self, values: Mapping[str, str]) -> None:
        for tracker in self.trackers:
            tracker.tag(values)

    def metrics(self, values: Mapping[str, float], images: int) -> None:
        for tracker in self.trackers:
            tracker.metrics(values, images)

    def artifact(self, path: Path, folder: str = "") -> None:
        for tracker in self.trackers:
            tracker.artifact(path, folder)

    def close(self, failed: bool = False) -> None:
        for tracker in self.trackers:
            tracker.close(failed)


class Said(NamedTuple):
    """One call of a tracker method, as a value that can travel to another process."""

    method: str
    arguments: tuple[Any, ...]

    def to(self, tracker: Tracker) -> None:
        """Repeat the call on `tracker`."""
        getattr(tracker, self.method)(*self.arguments)


class Sender:
    """Passes everything on as `Said` values: the tracker of a job whose driver holds the real one.

    `close` is not passed on, as the driver may have more to say after the job.
    """

    def __init__(self, emit: Callable[[Said], None]) -> None:
        self._emit = emit

    def params(self, values: Mapping[str, Any]) -> None:
        self._emit(Said("params", (dict(values),)))

    def tag(self, values: Mapping[str, str]) -> None:
        self._emit(Said("tag", (dict(values),)))

    def metrics(self, values: Mapping[str, float], images: int) -> None:
        self._emit(Said("metrics", ({name: float(value) for name, value in values.items()}, images)))

    def artifact(self, path: Path, folder: str = "") -> None:
        self._emit(Said("artifact", (path, folder)))

    def close(self, failed: bool = False) -> None: ...
