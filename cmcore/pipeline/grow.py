"""Runs of more images that go on from the last checkpoint of a shorter one, where they would have come to it anyway.

A step may depend on the images seen alone, and not on how many there will be: then the longer run passes through the
state in which the shorter one ended, and to go on from there gives the same bits as to start anew.
"""

import json
import shutil
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path

from cmcore.assemble.project import Project
from cmcore.assemble.run import Run
from cmcore.assemble.summary import SUMMARY
from cmcore.assemble.training import FINAL, SNAPSHOTS, Inputs, fingerprint, work_folder
from cmcore.atomic import write_atomic
from cmcore.budget.passes import spans
from cmcore.numbers import grouped
from cmcore.pipeline.common import Folders
from cmcore.pipeline.tidy import LONGER
from cmcore.train import checkpoint
from cmcore.train.checkpoint import CheckpointError
from cmcore.train.session import CHECKPOINT, HISTORY, check_history, snapshot_images
from cmcore.train.timing import TIME


def any_length(run: Run, inputs: Inputs) -> str:
    """Digest of everything but the number of images and of snapshots."""
    return fingerprint(replace(run, train=replace(run.train, images=run.train.batch, snapshots=0)), inputs)


def keep(folder: Path, run: Run, inputs: Inputs) -> None:
    """Let the checkpoint of a finished run stay where a longer run can go on from it."""
    if run.weights is None and not spans(run):
        write_atomic(folder / LONGER, any_length(run, inputs).encode())


def begin(folder: Path, run: Run, inputs: Inputs) -> int:
    """Begin a run that has no checkpoint with that of a shorter one; the images seen there, 0 where there is none.

    Args:
        folder: the work folder of the run.
        run: which.
        inputs: that it reads.
    """
    if run.weights is not None or (folder / CHECKPOINT).exists() or (folder / FINAL).exists():
        return 0
    found = shorter(folder, run, inputs)
    if found is None:
        return 0
    mark, kept = fingerprint(run, inputs), set(_moments(run))
    for part in (HISTORY, TIME):
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(found / part, folder / part)
    for path in sorted((found / FINAL / SNAPSHOTS).glob("*.safetensors")):
        if int(path.stem) in kept:
            _renamed(path, folder / SNAPSHOTS / path.name, mark)
    return _renamed(found / CHECKPOINT, folder / CHECKPOINT, mark)  # last: with it the run can go on


def shorter(folder: Path, run: Run, inputs: Inputs) -> Path | None:
    """The work folder of the longest finished run that differs in its length alone, and that the run passes through."""
    if spans(run):
        return None
    own, found = any_length(run, inputs), dict[int, Path]()
    for mark in folder.parent.glob(f"{run.name}-*/{LONGER}"):
        other = mark.parent
        if mark.read_text(encoding="ascii", errors="replace") != own or not (other / FINAL).is_dir():
            continue
        try:
            meta = checkpoint.header(other / CHECKPOINT)
            check_history(other, meta)
        except CheckpointError:  # damaged: as if it were not there
            continue
        images, there = meta["images"], {int(path.stem) for path in (other / FINAL / SNAPSHOTS).glob("*.safetensors")}
        if images < run.train.total and not meta.get("files") and not _missed(run, images, there):
            found[images] = other
    return found[max(found)] if found else None


def _missed(run: Run, images: int, there: Collection[int]) -> str:
    """What the run would have kept until a moment and a shorter one has not; empty where that is nothing."""
    if missed := [moment for moment in _moments(run) if moment <= images and moment not in there]:
        return f"its snapshot after {grouped(missed[0])} images is not there; see train.snapshots"
    if images % run.train.log_images >= run.train.batch:
        return f"{grouped(images)} images are no multiple of train.log_images = {run.train.log_images}"
    return ""


def _moments(run: Run) -> list[int]:
    return [snapshot_images(run.train, number) for number in range(1, run.train.snapshots + 1)]


def _renamed(source: Path, target: Path, mark: str) -> int:
    """Write a file of tensors as one of the run with this fingerprint; the images that it is of."""
    tensors, meta = checkpoint.load(source)
    target.parent.mkdir(parents=True, exist_ok=True)
    checkpoint.save(target, tensors, meta | {"fingerprint": mark})
    return meta["images"]


def trained(folders: Folders, name: str) -> int:
    """The images that the present results of a run have seen, 0 where there are none."""
    try:
        return int(json.loads((folders.run(name) / SUMMARY).read_bytes())["images"])
    except (OSError, ValueError, KeyError, TypeError):
        return 0


def longer(project: Project, folders: Folders) -> list[str]:
    """A line for each run whose results are of another number of images than it asks for: what is done, and why."""
    lines, anew = list[str](), set[str]()
    waiting = list(project.runs.values())
    while waiting:
        run = next(run for run in waiting if not {other.name for other in waiting} & set(run.parents))
        waiting.remove(run)
        before, total = trained(folders, run.name), run.train.total
        changed = [parent for parent in run.parents if parent in anew]
        if before and (before != total or changed):
            anew.add(run.name)
        if before and before != total and run.weights is None:
            how = f"from the start, as {changed[0]} changes" if changed else _how(folders, run, before)
            lines.append(f"{run.name}: {grouped(total)} images in place of {grouped(before)}, {how}")
    return lines


def _how(folders: Folders, run: Run, before: int) -> str:
    """How a run comes to another number of images than its results have seen."""
    inputs = Inputs(folders.data, folders.weights(run.init), folders.weights(run.teacher))
    if not (folders.manifest.is_file() and inputs.init.is_file() and inputs.teacher.is_file()):
        return "from the start"
    folder = work_folder(folders.work, folders.workload, run.name, fingerprint(run, inputs))
    if (folder / FINAL).is_dir():
        return "as they were trained before"
    if (folder / CHECKPOINT).is_file():
        return f"from its checkpoint after {grouped(checkpoint.header(folder / CHECKPOINT)['images'])}"
    if before > run.train.total:
        return "from the start"
    if why := spans(run):
        return f"from the start, as {why}"
    if found := shorter(folder, run, inputs):
        return f"going on from {grouped(checkpoint.header(found / CHECKPOINT)['images'])}"
    there = {int(path.stem) for path in (folders.run(run.name) / SNAPSHOTS).glob("*.safetensors")}
    return f"from the start, as {_missed(run, before, there) or 'no checkpoint of the shorter run is there'}"
