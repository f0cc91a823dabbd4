"""A copy of the project under git and DVC, in which a benchmark can do what it wants."""

import contextlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import yaml

from cmcore.closure import PACKAGES, ROOT

LOOK = 0.1  # seconds between two looks at the clocks of processes
FILES = ("dvc.yaml", "searches/dvc.yaml", ".dvcignore", ".gitignore", ".dvc/config", ".dvc/.gitignore")


class Cost(NamedTuple):
    """What a command took."""

    wall: float  # seconds
    cpu: float  # seconds of all its processes together


class Meter:
    """Adds up the processor time of a process and of all below it, by looking at them now and then.

    Ray's node process does not wait for its children, so the kernel's own sums would miss all workers.
    """

    def __init__(self, pid: int) -> None:
        self._root = psutil.Process(pid)
        self._seen: dict[psutil.Process, float] = {}

    def look(self) -> None:
        """Read the clocks of all that are there."""
        with contextlib.suppress(psutil.Error):
            for process in [self._root, *self._root.children(recursive=True)]:
                with contextlib.suppress(psutil.Error):
                    times = process.cpu_times()
                    self._seen[process] = times.user + times.system

    @property
    def seconds(self) -> float:
        """The sum so far."""
        return sum(self._seen.values())


class Workspace:
    """A project folder of its own, and how to run something in it.

    Args:
        folder: made here; it must not exist.
        params: the parameter file.
    """

    def __init__(self, folder: Path, params: Mapping[str, Any]) -> None:
        self.folder = folder
        self.variables: dict[str, str] = {}  # of the environment, for everything that is run here
        for name in PACKAGES:
            shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        for name in FILES:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
        self.write(params)
        git = ["git", "-C", str(folder), "-c", "user.name=benchmark", "-c", "user.email=benchmark@localhost"]
        for words in (["init", "-q"], ["add", "."], ["commit", "-qm", "A copy"]):
            subprocess.run([*git, *words], check=True)

    def write(self, params: Mapping[str, Any]) -> None:
        """Replace the parameter file."""
        (self.folder / "params.yaml").write_text(yaml.safe_dump(dict(params), sort_keys=False), encoding="utf-8")

    @property
    def environment(self) -> dict[str, str]:
        """This process's environment, without what leads back to its own project or Ray."""
        away = ("RAY_ADDRESS", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "MLFLOW_TRACKING_URI", "PYTHONPATH")
        kept = {name: value for name, value in os.environ.items() if name not in away}
        path = f"{Path(sys.executable).parent}{os.pathsep}{kept.get('PATH', '')}"
        place = str(self.folder.with_name("site"))
        return kept | {
            "PATH": path, "PYTHONDONTWRITEBYTECODE": "1", "DVC_SITE_CACHE_DIR": place, "DVC_NO_ANALYTICS": "1",
            "MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "true", **self.variables,
        }  # fmt: skip

    def start(self, *module: str, log: Path | None = None) -> subprocess.Popen[bytes]:
        """Start a module in a session of its own; what it says goes to the end of `log`."""
        with (log or self.folder.with_name("log.txt")).open("ab") as file:
            return subprocess.Popen(
                [sys.executable, "-m", *module], cwd=self.folder, env=self.environment, stdout=file, stderr=file,
                start_new_session=True,
            )  # fmt: skip

    def call(self, *module: str) -> Cost:
        """Run a module to its end and say what it took; a RuntimeError holds the end of the log where it fails."""
        log, start = self.folder.with_name("log.txt"), time.perf_counter()
        process = self.start(*module, log=log)
        meter = Meter(process.pid)
        while process.poll() is None:
            meter.look()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(LOOK)
        cost = Cost(time.perf_counter() - start, meter.seconds)
        if code := process.returncode:
            said = log.read_text(encoding="utf-8", errors="replace").splitlines()[-30:]
            raise RuntimeError("\n".join([f"{' '.join(module)} ended with {code}:", *said]))
        return cost

    def forget(self) -> None:
        """Throw away every result, also those that DVC and the training runs keep for later."""
        for name in ("outputs", "reports", ".work", ".tracking", ".dvc/cache", ".dvc/tmp", "dvc.lock"):
            path = self.folder / name
            path.unlink() if path.is_file() else shutil.rmtree(path, ignore_errors=True)
