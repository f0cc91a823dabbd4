"""`python -m stages <stage> [name]`, the commands in dvc.yaml.

Stages are imported, not run as scripts, so that Ray can send their jobs away by name.
"""

import importlib
import sys
from typing import Any

WHOLE = ("code", "prepare", "reference", "tabulate")  # of the workload
CHECKED = ("train", "evaluate")  # those whose work files are checked first
NAMED = ("train", "evaluate", "tune")  # of a run, or a search


def main(arguments: list[str]) -> None:
    """Run one stage."""
    name, *rest = arguments or [""]
    if name not in (NAMED if len(rest) == 1 else () if rest else WHOLE):
        sys.exit(f"usage: python -m stages {{{','.join(WHOLE)}}}, or python -m stages {{{','.join(NAMED)}}} NAME")
    try:
        from cmcore.pipeline.process import guarded

        stage = importlib.import_module(f"stages.{name}")
    except ModuleNotFoundError as error:
        sys.exit(f"{error.name} is not installed for {sys.executable}; use make, or activate the environment first")
    guarded(" ".join(arguments), lambda: run(stage, name, *rest))


def run(stage: Any, name: str, *rest: str) -> None:
    """Run a stage. Its work files are checked before, and those that it keeps get their checksums after."""
    if name not in CHECKED:
        stage.main(*rest)
        return
    from cmcore.pipeline.common import load
    from cmcore.pipeline.process import tell
    from cmcore.pipeline.work import mend, seal

    setup, whole = load(), "@".join([name, *rest])
    for replicate in range(setup.project.replicates(*rest)):
        mend(setup, whole, replicate, tell)
    stage.main(*rest)
    seal(setup, whole)


if __name__ == "__main__":
    main(sys.argv[1:])
