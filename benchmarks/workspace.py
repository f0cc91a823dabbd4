"""A copy of the project under git and DVC, in which a benchmark can do what it wants."""

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from cmcore.closure import PACKAGES, ROOT

FILES = ("dvc.yaml", "searches/dvc.yaml", ".dvcignore", ".gitignore", ".dvc/config", ".dvc/.gitignore")


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

    def call(self, *module: str) -> None:
        """Run a module to its end; a RuntimeError holds the end of the log where it fails."""
        log = self.folder.with_name("log.txt")
        if code := self.start(*module, log=log).wait():
            said = log.read_text(encoding="utf-8", errors="replace").splitlines()[-30:]
            raise RuntimeError("\n".join([f"{' '.join(module)} ended with {code}:", *said]))

    def forget(self) -> None:
        """Throw away every result, also those that DVC and the training runs keep for later."""
        for name in ("outputs", "reports", ".work", ".tracking", ".dvc/cache", ".dvc/tmp", "dvc.lock"):
            path = self.folder / name
            path.unlink() if path.is_file() else shutil.rmtree(path, ignore_errors=True)
