"""Removing the superfluous files of a finished run or search from its work folder.

Results lie in `final`, from which they are copied to the outputs; a folder that has it is never trained again. The
checkpoint to resume from, and the weights of which `final` holds copies, then only take space, more than the results.
The checkpoint stays where a run of more images can go on from it (`cmcore.pipeline.grow`).
"""

import os
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path

from cmcore.assemble.training import FINAL, SNAPSHOTS
from cmcore.search.trial import TRIAL
from cmcore.train.session import CHECKPOINT, HISTORY, PARTS

LONGER = "longer"  # beside a checkpoint that stays, as a longer run can go on from it: the digest of all but its length
KEPT = (TRIAL, HISTORY)  # of a trial whose search is over: its scores are all that is asked of it


def size(path: Path) -> int:
    """Bytes of a file, or of all files in a folder."""
    files = [path] if path.is_file() else path.rglob("*")
    return sum(file.lstat().st_size for file in files if file.is_symlink() or file.is_file())


def remove(paths: Iterable[Path]) -> int:
    """Remove files and folders; the result is how many bytes that freed."""
    freed = 0
    for path in paths:
        freed += size(path)
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    return freed


def tidy(folder: Path) -> int:
    """Remove the superfluous files of a finished run, none of an unfinished one; the result is the bytes freed."""
    if not (folder / FINAL).is_dir():
        return 0
    spare = [*(folder / SNAPSHOTS).glob("*.safetensors")]
    if not (folder / LONGER).exists():
        spare += [*folder.glob(CHECKPOINT), *folder.glob(PARTS)]
    if spare:
        _to_disk(folder / FINAL)
    return remove(spare)


def tidy_search(folder: Path) -> int:
    """The same for a search that is over: its trials, and the runs that it trained beside them."""
    trials = (path for trial in folder.glob("trials/*") for path in trial.iterdir() if path.name not in KEPT)
    return remove(list(trials)) + sum(map(tidy, runs_of_search(folder)))


def runs_of_search(folder: Path) -> Iterator[Path]:
    """Work folders of the runs that a search trains beside its trials."""
    return (path for name in ("posthoc", "confirm") for path in folder.glob(f"{name}/*"))


def _to_disk(folder: Path) -> None:
    """Wait until the copies are on the disk, before the originals go."""
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
