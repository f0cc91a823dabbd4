"""Damage in the work folders, found before a stage goes on from them: what it names is set aside and made again."""

import json
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


def mend(setup: Setup, stage: str, replicate: int, say: Say) -> None:
    """Set aside what is damaged of the work files of a replicate of a stage."""
    kind, _, name = stage.partition("@")
    if kind == "train":
        _mend_run(setup, setup.project.replicate(name, replicate), replicate, say)
    elif kind == "evaluate":
        _mend_shards(setup, name, say)


def _mend_run(setup: Setup, run: Run, replicate: int, say: Say) -> None:
    folders, root = setup.folders, setup.folders.root
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


def _mend_shards(setup: Setup, name: str, say: Say) -> None:
    """Remove damaged shards, and records without their checksum. Those of other runs of a similar name do no harm."""
    for store in (setup.folders.work / setup.folders.workload / "shards").glob(f"{name}-*"):
        for path in store.rglob("*.safetensors"):
            try:
                checkpoint.load(path)
            except CheckpointError as error:
                path.unlink(missing_ok=True)
                say(f"{error}: removed, and made again")
        for path in store.glob(RECORDS):
            mark = path.with_name(path.name + SUM)
            if not mark.is_file() or mark.read_text(encoding="ascii", errors="replace") != file_digest(path):
                path.unlink()
                say(f"{path.relative_to(setup.folders.root)} does not have its checksum: removed, and measured again")


def seal(setup: Setup, stage: str) -> None:
    """Give the records that an evaluation keeps for later their checksums."""
    kind, _, name = stage.partition("@")
    stores = (setup.folders.work / setup.folders.workload / "shards").glob(f"{name}-*") if kind == "evaluate" else ()
    for path in (path for store in stores for path in store.glob(RECORDS)):
        mark = path.with_name(path.name + SUM)
        if not mark.is_file():
            write_atomic(mark, file_digest(path).encode())
