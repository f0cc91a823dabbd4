"""`cmlab use`: workloads/<name>.yaml as the active parameter file."""

import hashlib
import subprocess
from pathlib import Path

from cmcore.atomic import write_atomic
from cmcore.commands.place import workload_file, workload_files
from cmcore.config import PARAMS, ConfigError

COPIED = Path(".work/used")  # the digest of the copy, by which it is known when its workload has been edited since


def committed(root: Path) -> bytes | None:
    """params.yaml as it is in git's HEAD, or None."""
    try:
        done = subprocess.run(["git", "-C", str(root), "show", f"HEAD:./{PARAMS}"], capture_output=True, check=False)
    except OSError:  # there is no git
        return None
    return done.stdout if done.returncode == 0 else None


def use(name: str, root: Path) -> list[str]:
    """Copy the workload's file to params.yaml, unless that would lose edits; the result says so.

    Raises:
        ConfigError: there is no such workload, or params.yaml holds edits that are neither committed nor in a workload.
    """
    wanted, active = workload_file(root, name).read_bytes(), root / PARAMS
    present = active.read_bytes() if active.exists() else wanted
    digest, last = hashlib.sha256(present).hexdigest(), root / COPIED
    copied = last.is_file() and last.read_text(encoding="ascii", errors="replace") == digest
    if not copied and present not in (*(file.read_bytes() for file in workload_files(root).values()), committed(root)):
        raise ConfigError(
            PARAMS,
            "holds edits that are neither committed nor in workloads/: "
            "commit it, save it as workloads/<name>.yaml, or delete it, and try again",
        )
    write_atomic(active, wanted)
    last.parent.mkdir(exist_ok=True)
    write_atomic(last, hashlib.sha256(wanted).hexdigest().encode())
    return [f"{PARAMS} is now workloads/{name}.yaml; `cmlab repro` restores what was computed before"]
