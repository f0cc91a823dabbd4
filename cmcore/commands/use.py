"""`make use WORKLOAD=<name>`: make workloads/<name>.yaml the active parameter file."""

import subprocess
import sys
from pathlib import Path

from cmcore.atomic import write_atomic
from cmcore.pipeline.common import PARAMS


def committed(root: Path) -> bytes | None:
    """params.yaml as it is in git's HEAD, or None."""
    done = subprocess.run(["git", "-C", str(root), "show", f"HEAD:./{PARAMS}"], capture_output=True, check=False)
    return done.stdout if done.returncode == 0 else None


def use(name: str, root: Path) -> str:
    """Copy the workload's file to params.yaml, unless that would lose edits, and say what was done.

    Raises:
        SystemExit: there is no such workload, or params.yaml holds edits that are neither committed nor in a workload.
    """
    files = {file.stem: file for file in sorted((root / "workloads").glob("*.yaml"))}
    if name not in files:
        raise SystemExit(f"WORKLOAD: expected one of {', '.join(files)}, got {name!r}")
    wanted, active = files[name].read_bytes(), root / PARAMS
    present = active.read_bytes() if active.exists() else wanted
    if present not in (*(file.read_bytes() for file in files.values()), committed(root)):
        raise SystemExit(
            f"{PARAMS} holds edits that are neither committed nor in workloads/: "
            f"commit it, save it as workloads/<name>.yaml, or delete it, and try again"
        )
    write_atomic(active, wanted)
    return f"{PARAMS} is now workloads/{name}.yaml; `make repro` restores what was computed before"


if __name__ == "__main__":
    print(use(sys.argv[1] if len(sys.argv) > 1 else "", Path.cwd()))
