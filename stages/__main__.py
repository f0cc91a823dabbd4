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
    """Run a stage, after its work files were checked."""
    if name in CHECKED:
        from cmcore.pipeline.common import load
        from cmcore.pipeline.process import tell
        from cmcore.pipeline.work import mend

        setup = load()
        for replicate in range(setup.project.replicates(*rest)):
            mend(setup, "@".join([name, *rest]), replicate, tell)
    stage.main(*rest)


if __name__ == "__main__":
    main(sys.argv[1:])
