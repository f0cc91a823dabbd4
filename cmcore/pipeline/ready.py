"""Results that wait for their stage: work that `make repro` did ahead of DVC, which a stage then only has to take.

Whether it still may take them is asked of the parameters, of the code and of the files that were read. This module
imports little: its imports are what a stage costs that has nothing else to do.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from cmcore.closure import PACKAGES, ROOT

PARAMS = "params.yaml"
FOLDER = Path(".work/ready")
Results = dict[Path, Path]  # where a stage declares a file or folder -> where it waits
Find = Callable[[Path], Path]  # a declared file -> where it can be read


def content(paths: Iterable[Path]) -> str:
    """Digest of files and of all that is in folders, but for compiled code; what is missing counts as well."""
    total = hashlib.sha256()
    for path in paths:
        files = [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.is_file())
        total.update(b"\1")
        for file in files:
            if file.suffix != ".pyc":
                total.update(file.relative_to(path).as_posix().encode() + b"\0")
                with file.open("rb") as stream:
                    total.update(hashlib.file_digest(stream, "sha256").digest())
    return total.hexdigest()


def state(root: Path) -> str:
    """Digest of the parameter file and of all code."""
    return content([root / PARAMS, *(ROOT / name for name in PACKAGES)])


class Desk:
    """Where results are left and taken, in one project folder.

    The parameters and the code are looked at once, when it is made: results belong to what was there before the work.
    """

    def __init__(self, root: Path) -> None:
        self.root, self.results = root, Results()
        self._state = state(root)

    def find(self, path: Path) -> Path:
        """Where a declared file can be read: where it waits, if it was left here, else in its place."""
        for place in (path, *path.parents):
            if place in self.results:
                return self.results[place] / path.relative_to(place)
        return path

    def leave(self, stage: str, results: Results, inputs: Iterable[Path]) -> None:
        """Leave the results of a stage, which were made from these declared files."""
        ticket = {
            "state": self._state,
            "inputs": {str(path.relative_to(self.root)): content([self.find(path)]) for path in inputs},
            "results": {
                str(place.relative_to(self.root)): str(made.relative_to(self.root)) for place, made in results.items()
            },
        }
        path = self._ticket(stage)
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(f".{os.getpid()}.part")
        part.write_text(json.dumps(ticket, indent=1))
        part.replace(path)
        self.results |= results

    def waiting(self, stage: str) -> Results | None:
        """The results that wait for a stage, if it would make the same ones now."""
        try:
            ticket = json.loads(self._ticket(stage).read_text())
        except (OSError, ValueError):
            return None
        if ticket["state"] != self._state:
            return None
        results = {self.root / place: self.root / made for place, made in ticket["results"].items()}
        unchanged = all(content([self.find(self.root / path)]) == mark for path, mark in ticket["inputs"].items())
        if not unchanged or not all(made.exists() for made in results.values()):
            return None
        self.results |= results
        return results

    def _ticket(self, stage: str) -> Path:
        return self.root / FOLDER / f"{stage.replace('@', '-')}.json"


def put(results: Mapping[Path, Path]) -> None:
    """Copy results to where they are declared; what was there is replaced."""
    for place, made in results.items():
        place.parent.mkdir(parents=True, exist_ok=True)
        partial = place.with_name(f".{place.name}.partial")
        if made.is_dir():
            shutil.rmtree(partial, ignore_errors=True)
            shutil.copytree(made, partial)
            shutil.rmtree(place, ignore_errors=True)
        else:
            shutil.copyfile(made, partial)
        partial.replace(place)


def take(stage: str, root: Path) -> bool:
    """Put the results that wait for a stage where it declares them; False where there are none that fit."""
    results = Desk(root).waiting(stage)
    if results is None:
        return False
    put(results)
    return True
