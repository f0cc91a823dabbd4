"""`cmlab report`: the tables, figures and page again, from what is there. Nothing is trained, measured or searched."""

import os
import subprocess
import sys
from pathlib import Path

from cmcore.config import ConfigError
from cmcore.pipeline.common import Setup, load


def missing(setup: Setup) -> str:
    """What the report needs and is not there, or nothing."""
    folders = setup.folders
    needed = (folders.reference / "reference.json", folders.runs, folders.samples, folders.reports / "metrics")
    return next((path.relative_to(folders.root).as_posix() for path in needed if not path.exists()), "")


def main() -> int:
    """Make DVC run the last stage alone, and seal it; the result is the exit code.

    Searches are no dependency of the report, as `dvc repro` would then run them: this is how a new one gets into it.
    """
    try:
        setup = load()
    except ConfigError as error:
        print(f"params.yaml: {error}", file=sys.stderr)
        return 2
    if path := missing(setup):
        print(f"there is no {path} yet: `make repro` makes it, and the report with it")
        return 0
    # What DVC starts runs with this python too, whether or not its environment was activated.
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    command = [sys.executable, "-m", "dvc", "repro", "--quiet", "--single-item", "--force", "tabulate"]
    return subprocess.run(command, env={**os.environ, "PATH": path}, check=False).returncode
