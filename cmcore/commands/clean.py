"""`cmlab clean`: removal of work folders that no run or search of any workload file can use.

A folder's name ends in the fingerprint of configuration, code, data and starting weights. As long as one parameter file
gives a run that fingerprint, or it cannot be known, the folder stays.
"""

import itertools
import os
import re
from collections.abc import Iterator
from pathlib import Path

import psutil

from cmcore.assemble.project import Project, load_project
from cmcore.assemble.run import NONE, RANDOM
from cmcore.assemble.training import FINAL, WEIGHTS, Inputs, fingerprint, work_folder
from cmcore.config import PARAMS, ConfigError, load_yaml
from cmcore.numbers import size
from cmcore.pipeline.common import Folders
from cmcore.pipeline.tidy import remove, tidy, tidy_search
from cmcore.report.searches import read_searches
from cmcore.search.entries import searches
from cmcore.search.search import search_fingerprint

FOLDER = re.compile(r"(?P<name>.+)-[0-9a-f]{16}")


class Kept:
    """Which work folders are of use: some by their path, others by the name of a run that may be anything."""

    def __init__(self) -> None:
        self.paths: set[Path] = set()
        self.names: set[Path] = set()  # a folder without its fingerprint
        self.workloads: set[Path] = set()

    def __contains__(self, folder: Path) -> bool:
        match = FOLDER.fullmatch(folder.name)
        name = folder.with_name(match["name"]) if match else folder
        return folder in self.paths or name in self.names or bool(self.workloads & set(folder.parents))

    def add(self, project: Project, folders: Folders) -> None:
        """Keep what a parameter file can use."""
        place, weights = folders.work / folders.workload, dict[str, list[Path]]()

        def starts(name: str) -> list[Path]:
            """All weights of a run that are there: those that DVC knows, and those that wait for it."""
            if name not in weights:
                none = name in (RANDOM, NONE)
                waiting = [] if none else [folder / FINAL / WEIGHTS for folder in runs(name)]
                known = [folders.weights(name, index) for index in range(1 if none else replicates(name))]
                weights[name] = [path for path in (*known, *waiting) if path.exists()]
            return weights[name]

        def runs(name: str) -> list[Path]:
            """The work folders of a run's replicates, one for each of the weights that they may start from."""
            ours = [project.replicate(name, index) for index in range(replicates(name))]
            run = ours[0]
            pairs = itertools.product(starts(run.init), starts(run.teacher))
            found = [Inputs(folders.data, *pair) for pair in pairs if folders.manifest.exists()]
            if not found:
                self.names.add(place / name)
                return [path for path in place.glob(f"{name}-*") if FOLDER.fullmatch(path.name)]
            return [
                work_folder(folders.work, folders.workload, one.name, fingerprint(one, inputs))
                for one in ours
                for inputs in found
            ]

        def replicates(name: str) -> int:
            """How many there are, or were when the outputs were made."""
            return max(project.replicates(name), 1 + len(list(folders.seeds(name).glob("*/"))))

        for name in project.runs:
            self.paths |= set(runs(name))
        for name, search in searches(project).items():
            reference, pairs = folders.reference, list(itertools.product(starts(search.init), starts(search.teacher)))
            if not (pairs and folders.manifest.exists() and (reference / "reference.json").exists()):
                self.names.add(place / "tune" / name)
            for pair in pairs if place / "tune" / name not in self.names else ():
                mark = search_fingerprint(project, search, Inputs(folders.data, *pair), reference)
                self.paths.add(place / "tune" / f"{name}-{mark}")


def kept(root: Path) -> Kept:
    """The work folders that the active parameter file and those in workloads/ can use.

    Raises:
        ConfigError: a file does not even name its workload.
    """
    result = Kept()
    for path in (root / PARAMS, *sorted((root / "workloads").glob("*.yaml"))):
        try:
            project = load_project(path)
        except ConfigError as error:
            workload = load_yaml(path).get("workload")
            if not isinstance(workload, str):
                raise ConfigError(
                    str(path.relative_to(root)), f"nothing was removed, as it is wrong: {error}"
                ) from error
            result.workloads.add(root / ".work" / workload)
            continue
        result.add(project, Folders(root, project.workload))
    return result


def work_folders(work: Path) -> Iterator[Path]:
    """The folders of runs and of searches."""
    for folder in sorted([*work.glob("*/*"), *work.glob("*/tune/*")]):
        if folder.is_dir() and FOLDER.fullmatch(folder.name):
            yield folder


def busy(root: Path) -> bool:
    """Whether a stage of this project runs, which may write where we remove."""
    ours = {os.getpid(), *(parent.pid for parent in psutil.Process().parents())}
    for process in psutil.process_iter(["cmdline", "cwd"]):
        words = process.info["cmdline"] or []
        stage = any(word == "stages" or word.startswith("stages.") for word in words)
        if stage and process.pid not in ours and process.info["cwd"] == str(root):
            return True
    return False


def clean(root: Path) -> list[str]:
    """Remove what is of no use, and say in a line for each what it was and how many bytes it had.

    Raises:
        ConfigError: a parameter file is too wrong to tell what it uses, or a stage is at work.
        ReportError: so is the report of a search.
    """
    root = root.resolve()
    if busy(root):
        raise ConfigError(".work", "expected no stage of this project to run; nothing was removed")
    use, lines, freed = kept(root), list[str](), 0
    ended = {search.fingerprint for place in root.glob("reports/*/tune") for search in read_searches(place)}
    for folder in list(work_folders(root / ".work")):
        if folder not in use:
            bytes_, what = remove([folder]), "is of no run of any workload file"
        else:
            over = folder.name in ended
            bytes_, what = (tidy_search(folder) if over else tidy(folder)), "has ended: what it needed to go on"
        if bytes_:
            lines.append(f"{folder.relative_to(root)} {what}: {size(bytes_, 'B', ' ')}")
        freed += bytes_
    return [*lines, f"{size(freed, 'B', ' ')} freed"]
