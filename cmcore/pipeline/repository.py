"""DVC as a library: which stages have to run, which results its cache restores, and recording new results."""

import contextlib
import json
import logging
import os
import threading
from collections.abc import Iterator, Mapping
from typing import Any

from cmcore.config import PARAMS
from cmcore.edge.ray_session import ComputeError
from cmcore.pipeline.code import code_file, code_roots, describe_code
from cmcore.pipeline.common import Setup
from cmcore.pipeline.process import DRIVER
from cmcore.pipeline.speeds import changed_stages


class Repository:
    """The DVC repository of the project folder, for one run of the pipeline.

    It remembers parameters and code of the start: results are recorded only as long as these hold. Its methods raise a
    ComputeError where DVC fails.
    """

    def __init__(self, setup: Setup) -> None:
        self._folders = setup.folders
        self._roots = code_roots(setup.project.sections)
        self._params, self._code = self._read_params(), describe_code(self._roots)
        self._lock = threading.Lock()  # DVC's own lock is of processes

    def plan(self, last: str) -> tuple[list[str], list[str]]:
        """The stages that `dvc repro` would run for the stage `last`, in order, and those of them that were restored.

        A stage is restored and recorded where DVC's run cache holds its results.
        """
        with self._open() as repo:
            import networkx
            from dvc.repo import lock_repo
            from dvc.stage.cache import RunCacheNotFoundError

            graph = repo.index.graph
            end = next(stage for stage in graph if stage.addressing == last)
            stages = {stage.addressing: stage for stage in networkx.dfs_postorder_nodes(graph, end)}
            parents = {name: [other.addressing for other in graph.successors(stage)] for name, stage in stages.items()}
            todo, restored = changed_stages(repo.status(), parents), list[str]()
            with lock_repo(repo):
                for name in todo:
                    if set(restored).issuperset(parent for parent in parents[name] if parent in todo):
                        with contextlib.suppress(RunCacheNotFoundError):
                            repo.stage_cache.restore(stages[name])
                            repo.commit(name, force=True)
                            restored.append(name)
            return todo, restored

    def reproduce(self, stage: str, environment: Mapping[str, str], *, force: bool = False) -> None:
        """Run one stage in a process of its own as `dvc repro --single-item` does, unless nothing has changed.

        Args:
            stage: whose dependencies are up to date.
            environment: variables for its process.
            force: run it even so.
        """
        self._check(stage)
        with self._open() as repo:
            named = {DRIVER: str(os.getpid()), **environment}
            repo.reproduce(stage, single_item=True, force=force, run_env=named)

    def record(self, stage: str) -> None:
        """Record the results of a stage, which are in their places, as `dvc commit` does: in dvc.lock and the caches.

        Raises:
            ComputeError: parameters or code are no longer those of the start, so the results may be those of neither.
        """
        self._check(stage)
        with self._open() as repo:
            repo.commit(stage, force=True)

    def _check(self, stage: str) -> None:
        again = "is not recorded; start again to compute with the new ones"
        if self._read_params() != self._params:
            raise ComputeError(f"{PARAMS} has changed since the start, so {stage} {again}")
        if stage in self._code and describe_code({stage: self._roots[stage]})[stage] != self._code[stage]:
            raise ComputeError(f"the code has changed since the start, so {stage} {again}")
        file = self._folders.code / code_file(stage)
        if stage in self._code and json.loads(file.read_bytes()) != self._code[stage]:
            raise ComputeError(f"{file} has changed since the start, so {stage} {again}")

    def _read_params(self) -> bytes:
        return (self._folders.root / PARAMS).read_bytes()

    @contextlib.contextmanager
    def _open(self) -> Iterator[Any]:
        from dvc.exceptions import DvcException
        from dvc.repo import Repo

        logging.getLogger("dvc").setLevel(logging.WARNING)  # the driver says what is done in words of its own
        with self._lock:
            try:
                with Repo(str(self._folders.root)) as repo:
                    yield repo
            except DvcException as error:
                raise ComputeError(f"DVC: {' '.join(str(error).split())}") from error
