"""`python -m stages <stage> [name]`: what dvc.yaml calls.

Stages are imported, not run as scripts, so that Ray can send their jobs away by name.
"""

import importlib
import sys
from pathlib import Path

from cmcore.pipeline.ready import take

WHOLE = ("code", "prepare", "reference", "tabulate")  # of the workload
NAMED = ("train", "evaluate", "tune")  # of a run, or a search


def main(arguments: list[str]) -> None:
    """Run one stage, or take the results that wait for it."""
    name, *rest = arguments or [""]
    if name not in (NAMED if len(rest) == 1 else () if rest else WHOLE):
        sys.exit(f"usage: python -m stages {{{','.join(WHOLE)}}}, or python -m stages {{{','.join(NAMED)}}} NAME")
    try:
        if take("@".join(arguments), Path.cwd()):
            return
    except OSError as error:
        sys.exit(f"{' '.join(arguments)}: {error}")
    try:
        from cmcore.pipeline.process import guarded

        stage = importlib.import_module(f"stages.{name}")
    except ModuleNotFoundError as error:
        sys.exit(f"{error.name} is not installed for {sys.executable}; use make, or activate the environment first")
    guarded(" ".join(arguments), lambda: stage.main(*rest))


if __name__ == "__main__":
    main(sys.argv[1:])
