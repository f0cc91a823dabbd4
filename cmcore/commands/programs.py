"""Programs that a command starts: with this python and its scripts, whether or not its environment was activated."""

import os
import subprocess
import sys
from pathlib import Path


def environment(**more: str) -> dict[str, str]:
    """This process's environment with its python's folder first on PATH, and `more` variables."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    return {**os.environ, "PATH": path, "PYTHONUNBUFFERED": "1", **more}


def run_module(*words: str) -> int:
    """Run a module to its end, its output shown as it comes; the result is the exit code."""
    process = subprocess.Popen([sys.executable, "-m", *words], env=environment())
    try:
        return process.wait()
    except BaseException:
        process.terminate()
        process.wait()
        raise
