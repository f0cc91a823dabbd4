"""The project folder a command works in, and the error of a command that cannot do its work."""

from pathlib import Path

from cmcore.closure import ROOT
from cmcore.config import PARAMS, ConfigError

PIPELINE = "dvc.yaml"
WORKLOADS = "workloads"


class CommandError(RuntimeError):
    """A command cannot do its work; the message says why in one sentence."""


def project_root(start: Path | None = None) -> Path:
    """The nearest folder at or above `start`, by default the working directory, that holds a project.

    Raises:
        CommandError: there is none.
    """
    start = (start or Path.cwd()).resolve()
    for folder in (start, *start.parents):
        # Without params.yaml it is a project all the same: `cmlab use` makes the file.
        if (folder / PIPELINE).is_file() and ((folder / PARAMS).is_file() or (folder / WORKLOADS).is_dir()):
            return folder
    raise CommandError(f"expected a project folder, with {PIPELINE} and {PARAMS}, at or above {start}")


def require_own_code(root: Path) -> None:
    """Refuse to compute with the stages of one checkout and the commands of another.

    Raises:
        CommandError: the project folder is not the one that this code lies in.
    """
    if root.resolve() != ROOT.resolve():
        raise CommandError(f"the project is {root}, but this cmlab belongs to {ROOT}; run {root / '.venv/bin/cmlab'}")


def workload_files(root: Path) -> dict[str, Path]:
    """The workload files of a project, by name."""
    return {file.stem: file for file in sorted((root / WORKLOADS).glob("*.yaml"))}


def workload_file(root: Path, name: str) -> Path:
    """The file of a workload.

    Raises:
        ConfigError: there is no such workload.
    """
    files = workload_files(root)
    if name not in files:
        raise ConfigError("WORKLOAD", f"expected one of {', '.join(files)}, got {name!r}")
    return files[name]
