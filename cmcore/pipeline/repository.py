"""DVC as a library: which stages have to run, which results its cache restores, and recording new results."""

import contextlib
import json
import logging
import os
import sqlite3
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from cmcore.config import PARAMS
from cmcore.edge.ray_family import lost
from cmcore.edge.ray_session import ComputeError
from cmcore.errors import reason
from cmcore.pipeline.code import code_file, code_roots, describe_code
from cmcore.pipeline.common import Setup
from cmcore.pipeline.contents import named_files
from cmcore.pipeline.guard import (
    LOCK_FILE,
    Checksums,
    full_disk,
    keep_lock_file,
    mend_dvc_folder,
    mend_lock_file,
    mend_run_cache,
    parse_lock,
    recorded,
    remove_damaged,
    set_aside,
    watched,
)
from cmcore.pipeline.process import DRIVER, advice, causes
from cmcore.pipeline.speeds import changed_stages

NO_GIT = {"core": {"no_scm": True}}


class Repository:
    """The DVC repository of the project folder, for one run of the pipeline.

    It remembers parameters and code of the start: results are recorded only as long as these hold. Its methods raise a
    ComputeError where DVC fails.
    """

    def __init__(self, setup: Setup) -> None:
        self._folders = setup.folders
        self._roots, self._files = code_roots(setup.project.sections), named_files(setup.project.sections)
        self._params, self._code = self._read_params(), self._describe(self._roots)
        self._lock = threading.Lock()  # DVC's own lock is of processes
        self._checksums = Checksums()

    def mend(self, say: Callable[[str], None]) -> None:
        """Put in order what a kill, a full disk or a merge left of DVC's files, and say so in a line each."""
        root = self._folders.root
        for line in mend_lock_file(root):
            say(line)
        for line in mend_dvc_folder(root):
            say(line)
        with self._open() as repo:
            for line in mend_run_cache(Path(repo.stage_cache.cache_dir)):
                say(line)
            self._set_aside_changed(repo, repo.status(targets=["code"]), say)

    def plan(self, last: str, say: Callable[[str], None] = print) -> tuple[list[str], list[str]]:
        """The stages that `dvc repro` would run for the stage `last`, in order, and those of them that were restored.

        The stage `code` is one of them where it has more to say than at its last run; it has to run before, always.
        A stage is restored and recorded where DVC's run cache holds its results. Results that are not what DVC
        recorded are set aside, and their stages are among those to run.

        Args:
            last: the stage.
            say: takes a line for every result that was set aside.
        """
        with self._open() as repo:
            import networkx
            from dvc.repo import lock_repo

            graph = repo.index.graph
            end = next(stage for stage in graph if stage.addressing == last)
            stages = {stage.addressing: stage for stage in networkx.dfs_postorder_nodes(graph, end)}
            parents = {name: [other.addressing for other in graph.successors(stage)] for name, stage in stages.items()}
            todo, restored = list[str](), list[str]()
            while True:
                status = {name: why for name, why in repo.status().items() if why != ["always changed"]}
                todo = [*restored, *(name for name in changed_stages(status, parents) if name not in restored)]
                self._set_aside_changed(repo, status, say)
                with lock_repo(repo):
                    for name in todo:
                        waiting = [parent for parent in parents[name] if parent in todo and parent not in restored]
                        if waiting or name in restored or stages[name].always_changed:
                            continue
                        if self._restore(repo, stages[name], say):
                            restored.append(name)
                if not self._damaged_inputs(stages, [name for name in todo if name not in restored], say):
                    return [name for name in stages if name in todo], restored

    def _restore(self, repo: Any, stage: Any, say: Callable[[str], None]) -> bool:
        """Whether the stage was restored from the cache with results that have their checksums, and recorded."""
        from dvc.exceptions import DvcException
        from dvc.stage.cache import RunCacheNotFoundError
        from dvc_objects.errors import ObjectFormatError

        root, cache, why, found = self._folders.root, Path(repo.cache.local.path), "", True
        try:
            repo.stage_cache.restore(stage)
        except RunCacheNotFoundError:
            found = False
        except (DvcException, ObjectFormatError, OSError) as error:
            why = f" ({reason(error)})"
        kept = (repo.stage_cache._load(stage) or {}).get("outs", ())
        if not found:
            for out in kept:  # or DVC would not write anew what it believes to have
                remove_damaged(cache, out["md5"])
            return False
        wanted = {out["path"]: out["md5"] for out in kept} or {out.def_path: out.hash_info.value for out in stage.outs}
        damaged = list(wanted) if why else self._checksums.damaged(root, wanted)
        if not damaged:
            repo.commit(stage.addressing, force=True)
            keep_lock_file(root)
            return True
        say(f"{', '.join(damaged)}: damaged in DVC's cache{why}, made again")
        for path in damaged:
            remove_damaged(cache, wanted[path])
            if (root / path).exists():
                set_aside(root, root / path)
        return False

    def _set_aside_changed(self, repo: Any, status: Mapping[str, Any], say: Callable[[str], None]) -> None:
        """Set aside results that differ from what DVC recorded, for which it would ask before it replaces them."""
        cached = {out.def_path for out in repo.index.outs if out.use_cache}
        for entries in status.values():
            for entry in entries:
                for path, how in entry.get("changed outs", {}).items() if isinstance(entry, Mapping) else ():
                    if how == "modified" and path in cached and (self._folders.root / path).exists():
                        self._aside(path, say)

    def _damaged_inputs(self, stages: Mapping[str, Any], todo: list[str], say: Callable[[str], None]) -> bool:
        """Whether a result that stages to run read, and that none of them makes, was damaged and set aside."""
        root = self._folders.root
        if not todo or not (root / LOCK_FILE).is_file():
            return False
        read = {dep.def_path for name in todo for dep in stages[name].deps}
        damaged = self._checksums.damaged(root, recorded(parse_lock((root / LOCK_FILE).read_bytes()), read, todo))
        for path in damaged:
            self._aside(path, say)
        return bool(damaged)

    def _aside(self, path: str, say: Callable[[str], None]) -> None:
        place = set_aside(self._folders.root, self._folders.root / path)
        say(f"{path} is not what was recorded: set aside as {place}, and made again")

    def reproduce(self, stage: str, environment: Mapping[str, str]) -> None:
        """Run one stage in a process of its own as `dvc repro --single-item` does, unless nothing has changed.

        Args:
            stage: whose dependencies are up to date.
            environment: variables for its process.
        """
        self._check(stage)
        named = {DRIVER: str(os.getpid()), **environment}

        def reproduce() -> None:
            with self._open() as repo:
                repo.reproduce(stage, single_item=True, run_env=named)
                keep_lock_file(self._folders.root)

        _beside(reproduce)  # or DVC would have this process ignore SIGINT until the stage ends

    def record(self, stage: str) -> None:
        """Record the results of a stage, which are in their places, as `dvc commit` does: in dvc.lock and the caches.

        Raises:
            ComputeError: parameters or code are no longer those of the start, so the results may be those of neither.
        """
        self._check(stage)
        with self._open() as repo:
            repo.commit(stage, force=True)
            keep_lock_file(self._folders.root)

    def _check(self, stage: str) -> None:
        again = "is not recorded; start again to compute with the new ones"
        if self._read_params() != self._params:
            raise ComputeError(f"{PARAMS} has changed since the start, so {stage} {again}")
        if stage in self._code and self._describe([stage])[stage] != self._code[stage]:
            raise ComputeError(f"the code, or a file that is named, has changed since the start, so {stage} {again}")
        file = self._folders.code / code_file(stage)
        if stage in self._code and json.loads(file.read_bytes()) != self._code[stage]:
            raise ComputeError(f"{file} has changed since the start, so {stage} {again}")

    def _describe(self, stages: Iterable[str]) -> dict[str, dict[str, Any]]:
        return describe_code({stage: self._roots[stage] for stage in stages}, self._files, self._folders.code)

    def _read_params(self) -> bytes:
        return (self._folders.root / PARAMS).read_bytes()

    @contextlib.contextmanager
    def _open(self) -> Iterator[Any]:
        from dvc.dirs import site_cache_dir
        from dvc.exceptions import DvcException
        from dvc.repo import Repo
        from dvc.scm import SCMError
        from dvc_objects.errors import ObjectFormatError
        from ruamel.yaml.error import YAMLError

        logging.getLogger("dvc").setLevel(logging.WARNING)  # the driver says what is done in words of its own
        places = [self._folders.root, Path(site_cache_dir())]
        with self._lock:
            try:
                with Repo(str(self._folders.root), config=None if _has_git(self._folders.root) else NO_GIT) as repo:
                    places += map(Path, filter(None, (repo.tmp_dir, repo.site_cache_dir, repo.cache.local.path)))
                    if line := full_disk(places):
                        raise ComputeError(line)
                    with watched(places, lost):
                        yield repo
            except (DvcException, SCMError, ObjectFormatError, YAMLError, sqlite3.Error, OSError) as error:
                found = causes(error)  # DVC's own error may name the stage alone
                of_system = any(isinstance(one, (sqlite3.Error, OSError)) for one in found)
                if of_system and (line := full_disk(places)):  # SQLite may say no more than that there was an error
                    raise ComputeError(line) from error
                said = ": ".join(dict.fromkeys(reason(one, 500) for one in found))
                more = advice(error) or ("; `cmlab doctor` looks for causes" if of_system else "")
                raise ComputeError(f"DVC: {said}{more}") from error


def _beside(work: Callable[[], None]) -> None:
    """Do some work in a thread of its own, which ends with this one, and raise its error."""
    errors = list[BaseException]()

    def call() -> None:
        try:
            work()
        except BaseException as error:  # raised below
            errors.append(error)

    thread = threading.Thread(target=call, name="dvc", daemon=True)
    thread.start()
    thread.join()
    if errors:
        raise errors[0]


def _has_git(root: Path) -> bool:
    """Whether the project is under git, without which DVC works where it is told so: as in an archive of it."""
    return any((folder / ".git").exists() for folder in (root, *root.parents))
