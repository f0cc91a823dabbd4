"""Damage in the work folders, found before a stage goes on from them: what it names is set aside and made again."""

import json
import threading
from collections.abc import Callable
from pathlib import Path

from cmcore.assemble.run import Run
from cmcore.assemble.summary import check_results, file_digest
from cmcore.assemble.training import FINAL, SNAPSHOTS, Inputs, fingerprint, work_folder
from cmcore.atomic import write_atomic
from cmcore.pipeline.common import Setup
from cmcore.pipeline.guard import set_aside
from cmcore.train import checkpoint
from cmcore.train.checkpoint import CheckpointError
from cmcore.train.session import CHECKPOINT, check_history, snapshot_images
from cmcore.train.timing import TIME, TrainingTime

Say = Callable[[str], None]
RECORDS, SUM = "records-*.json", ".sha256"
_SEALING = threading.Lock()  # jobs of one evaluation end side by side, and one sees the records of another


def mend_run(setup: Setup, name: str, replicate: int, say: Say) -> None:
    """Set aside what is damaged of the work files of a replicate of a run, before it is trained."""
    run, folders, root = setup.project.replicate(name, replicate), setup.folders, setup.folders.root
    inputs = Inputs(folders.data, *(setup.weights(source, replicate) for source in (run.init, run.teacher)))
    if not (folders.manifest.is_file() and inputs.init.is_file() and inputs.teacher.is_file()):
        return
    folder = work_folder(folders.work, folders.workload, run.name, fingerprint(run, inputs))
    if (folder / FINAL).exists():
        try:
            check_results(folder / FINAL)
        except CheckpointError as error:
            say(f"{error}: set aside as {set_aside(root, folder / FINAL)}, and made again")
    if not (folder / FINAL).exists() and (folder / CHECKPOINT).exists():
        try:
            _check_state(folder, run)
        except CheckpointError as error:
            say(f"{error}: set aside as {set_aside(root, folder)}, and trained again from the start")
    _mend_time(folder, root, say)


def _check_state(folder: Path, run: Run) -> None:
    """A CheckpointError where a run cannot go on from its checkpoint, or would miss what it has kept until then."""
    _, meta = checkpoint.load(folder / CHECKPOINT)
    check_history(folder, meta)
    moments = [snapshot_images(run.train, number) for number in range(1, run.train.snapshots + 1)]
    for images in moments:
        if images <= meta["images"]:
            checkpoint.load(folder / SNAPSHOTS / f"{images:09d}.safetensors")


def _mend_time(folder: Path, root: Path, say: Say) -> None:
    path = folder / TIME
    try:
        if path.exists():
            float(TrainingTime(**json.loads(path.read_bytes())).seconds)
    except (ValueError, TypeError):
        say(f"{path.relative_to(root)} is damaged: set aside as {set_aside(root, path)}; the time begins anew")
    if (folder / FINAL).exists() and not path.exists():
        TrainingTime().write(path)


def mend_shards(setup: Setup, name: str, say: Say) -> None:
    """Remove damaged shards, and records without their checksum, of all replicates of a run.

    Those of other runs of a similar name may be among them. So it is for the time before any evaluation starts, which
    writes records first and their checksums then.
    """
    for store in _stores(setup, name):
        for path in store.rglob("*.safetensors"):
            try:
                checkpoint.load(path)
            except CheckpointError as error:
                path.unlink(missing_ok=True)
                say(f"{error}: removed, and made again")
        for path in store.glob(RECORDS):
            mark = path.with_name(path.name + SUM)
            if not mark.is_file() or mark.read_text(encoding="ascii", errors="replace") != file_digest(path):
                path.unlink(missing_ok=True)
                say(f"{path.relative_to(setup.folders.root)} does not have its checksum: removed, and measured again")


def seal(setup: Setup, name: str) -> None:
    """Give the records that an evaluation of a run keeps for later their checksums."""
    with _SEALING:
        for path in (path for store in _stores(setup, name) for path in store.glob(RECORDS)):
            mark = path.with_name(path.name + SUM)
            if not mark.is_file():
                write_atomic(mark, file_digest(path).encode())


def _stores(setup: Setup, name: str) -> list[Path]:
    return sorted((setup.folders.work / setup.folders.workload / "shards").glob(f"{name}-*"))
