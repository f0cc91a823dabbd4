"""Cadence: pulls the training generator, and logs, saves and resumes. Nothing here changes what is computed.

A session lives in a folder named by the run's fingerprint, so what it finds there was made by the same configuration,
code and data. Averages of the history start anew at every logged line, and checkpoints are taken only there, so a
resumed run writes the same history and ends in the same bits as one that was never interrupted. Checkpoints are written
beside the training; a kill leaves the new one or the one before, whole.
"""

import os
import time
import zlib
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import takewhile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cmcore.atomic import write_atomic
from cmcore.errors import reason
from cmcore.methods.base import Method
from cmcore.tracking import jsonl
from cmcore.tracking.base import Tracker
from cmcore.train import checkpoint
from cmcore.train.background import Writer, held
from cmcore.train.compiled import CLOCK, LOG
from cmcore.train.gate import NonFiniteError
from cmcore.train.settings import TrainConfig
from cmcore.train.state import Layout, State, load_state_tensors, state_tensors
from cmcore.train.steps import StepRecord, steps
from cmcore.train.timing import TIME, Stopwatch
from cmcore.train.workers import ALONE, Worker

CHECKPOINT = "checkpoint.safetensors"
PARTS = "checkpoint.*.safetensors"  # what other workers than the lead hold of it, where networks are sharded
HISTORY = "history.jsonl"


class History:
    """history.jsonl: one line for every stretch of `log_images` images, the truth that trackers repeat."""

    def __init__(self, path: Path, images: int) -> None:
        """Open the file of a run that stands at `images`; later lines are of a lost future and are dropped."""
        kept = lines_until(path, images)
        write_atomic(path, kept)
        self._path, self.checksum = path, zlib.crc32(kept)

    def append(self, values: dict[str, float]) -> None:
        """Write a line and have it on the disk before the checkpoint that follows it."""
        line = jsonl.line(values)
        with self._path.open("a", encoding="utf-8") as file:
            file.write(line)
            file.flush()
            os.fsync(file.fileno())
        self.checksum = zlib.crc32(line.encode(), self.checksum)


def lines_until(path: Path, images: int) -> bytes:
    """The lines of a history up to a number of images seen; none where there is no file.

    Raises:
        CheckpointError: a line is none of a history.
    """
    try:
        rows = jsonl.read(path) if images and path.exists() else ()
        return "".join(jsonl.line(row) for row in takewhile(lambda row: row["images"] <= images, rows)).encode()
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise checkpoint.CheckpointError(f"{path}: expected a history, got a damaged line ({reason(error)})") from error


class Window:
    """Means of what happened since the last line of the history."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor | float] = {}
        self._counts: Counter[str] = Counter()  # not every player has a turn in every step

    def add(self, record: StepRecord) -> None:
        """Add a step, without waiting for the device."""
        for name, value in record.values.items():
            self._sums[name] = self._sums.get(name, 0.0) + value
            self._counts[name] += 1

    def means(self) -> dict[str, float]:
        """The means, and an empty window."""
        means = {name: float(value) / self._counts[name] for name, value in self._sums.items()}
        self.__init__()
        return means


def resume(state: State, folder: Path, fingerprint: str) -> bool:
    """Continue from the folder's checkpoint, if there is one, by however many workers it was written.

    If it is unreadable or belongs to another run, or the history beside it lacks lines, that is a CheckpointError.
    """
    path = folder / CHECKPOINT
    if not path.exists():
        return False
    tensors, meta = checkpoint.load_rows(path, Layout(state).rows)
    if meta.get("fingerprint") != fingerprint:
        raise checkpoint.CheckpointError(f"{path}: expected fingerprint {fingerprint}, got {meta.get('fingerprint')}")
    check_history(folder, meta)
    load_state_tensors(state, tensors, meta["images"])
    return True


def check_history(folder: Path, meta: dict[str, Any]) -> None:
    """A CheckpointError where the history beside a checkpoint is not that of its moment.

    Args:
        folder: of both.
        meta: of the checkpoint. One that a search took knows nothing of the history.
    """
    path = folder / HISTORY
    if "history" in meta and zlib.crc32(lines_until(path, meta["images"])) != meta["history"]:
        raise checkpoint.CheckpointError(f"{path}: lines until {meta['images']} images are damaged or lost")


def run_session(
    state: State,
    method: Method,
    batches: Any,
    config: TrainConfig,
    *,
    folder: Path,
    fingerprint: str,
    tracker: Tracker,
    on_progress: Callable[[int, int], None],
    on_snapshot: Callable[[State], None],
    writer: Writer,
    worker: Worker = ALONE,
) -> None:
    """Train to the end, from the start or from the folder's checkpoint.

    Args:
        state: as `new_state` gives it.
        method: the objective.
        batches: images by address, see `steps`.
        config: training settings.
        folder: where the checkpoint, the history and the time that was needed live.
        fingerprint: of the run.
        tracker: receives the history as it grows.
        on_progress: called with (images seen, total).
        on_snapshot: called at `config.snapshots` equidistant moments, the last being the end.
        writer: of the checkpoints; the caller waits for the last one.
        worker: one of the workers of the run. Only the lead logs and speaks. The others compute; where the networks are
            sharded they also write their part of the checkpoints, and are called at snapshots.

    Raises:
        NonFiniteError: naming step, method and the last good checkpoint.
        CheckpointError: the checkpoint is unreadable, of another run, or not the same for every worker.
    """
    resume(state, folder, fingerprint)
    _agree(state, folder, worker)
    if not worker.lead and not worker.shard:
        for _ in steps(state, method, batches, config, worker):
            pass
        return
    if worker.lead:
        checkpoint.remove_partial(folder)
        on_progress(state.images, config.total)
    history = History(folder / HISTORY, state.images) if worker.lead else None
    watch, window = Stopwatch(folder / TIME, state.device, worker.world), Window()
    saved, told = time.monotonic(), False
    try:
        for record in steps(state, method, batches, config, worker):
            window.add(record)
            if CLOCK.seconds and not told:
                LOG.info("compiling took %.0f s", CLOCK.seconds)
                told = True
            snapshot = _crossed(record.images, config.batch, config.total, config.snapshots)
            end = record.images == config.total
            logged = end or record.images % config.log_images < config.batch
            if snapshot or logged:
                record.settle()
            if snapshot:
                on_snapshot(state)
            if not logged:
                continue
            values = window.means()
            if history is not None:
                history.append({"images": record.images, **values})
                tracker.metrics({f"train/{name}": value for name, value in values.items()}, record.images)
                on_progress(record.images, config.total)
            due = end or time.monotonic() - saved >= config.checkpoint_seconds
            if worker.agreed(due, state.device) if worker.shard else due:
                meta = {"fingerprint": fingerprint, "images": state.images}
                if history is not None:
                    meta["history"] = history.checksum
                save(state, folder, meta, watch, writer, worker)
                saved = time.monotonic()
    except NonFiniteError as error:
        writer.wait()
        good = folder / CHECKPOINT
        where = f"the last good checkpoint is {good}" if good.exists() else "there is no checkpoint yet"
        raise NonFiniteError(f"{error}; {where}") from error


def _agree(state: State, folder: Path, worker: Worker) -> None:
    """Workers that resumed at different moments would train on in silence."""
    total = torch.tensor(float(state.images), dtype=torch.float64, device=state.device)
    worker.total([total])
    if float(total) != worker.world * state.images:
        raise checkpoint.CheckpointError(
            f"{folder / CHECKPOINT}: worker {worker.rank} resumed at {state.images} images and others did not; "
            "the work folder must lie on storage that all workers share"
        )


def save(
    state: State, folder: Path, meta: dict[str, Any], watch: Stopwatch, writer: Writer, worker: Worker = ALONE
) -> None:  # fmt: skip
    """Write the checkpoint: that of whole networks by the lead alone, beside the training.

    Where networks are sharded, each worker writes what it holds, and all wait. The lead's file names the others and
    comes when they are there, so a kill at any moment leaves a whole checkpoint, the old one or the new one.
    """
    if worker.shard:
        _save_part(state, folder, meta, watch, worker)
        return
    writer.wait()  # before the copy: memory holds one
    copy, took = held(state_tensors(state)), watch.read()

    def write() -> None:
        copy.ready()
        took.write(folder / TIME)
        checkpoint.save(folder / CHECKPOINT, copy.tensors, meta)
        _remove_parts(folder, [])

    writer.start(write)


def _save_part(state: State, folder: Path, meta: dict[str, Any], watch: Stopwatch, worker: Worker) -> None:
    tensors, layout = state_tensors(state), Layout(state)
    places = {name: layout.place(name, tensor.shape) for name, tensor in tensors.items()}
    meta |= {"rows": {name: place for name, place in places.items() if place is not None}}
    files = [PARTS.replace("*", f"{state.images}-{rank}") for rank in range(1, worker.world)]
    if not worker.lead:
        checkpoint.save(folder / files[worker.rank - 1], {name: tensors[name] for name in meta["rows"]}, meta)
    worker.agreed(True, state.device)  # all are there
    if worker.lead:
        watch.write()
        checkpoint.save(folder / CHECKPOINT, tensors, meta | {"files": files})
        _remove_parts(folder, files)


def _remove_parts(folder: Path, kept: Sequence[str]) -> None:
    """Remove parts that the checkpoint does not name."""
    for path in folder.glob(PARTS):
        if path.name not in kept:
            path.unlink()


def snapshot_images(config: TrainConfig, number: int) -> int:
    """Images seen at a snapshot: the first step at or after its mark, counted from 1."""
    return -(-number * config.steps // config.snapshots) * config.batch


def _crossed(images: int, batch: int, total: int, parts: int) -> bool:
    """Whether the step that ends at `images` passed one of `parts` equidistant marks, the last at `total`."""
    return images * parts // total > (images - batch) * parts // total
