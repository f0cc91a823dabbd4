"""`python -m stages <stage> [name]`, the commands in dvc.yaml.

Stages are imported, not run as scripts, so that Ray can send their jobs away by name.
"""

import importlib
import os
import signal
import sys
from typing import Any

WHOLE = ("code", "prepare", "reference", "edit", "tabulate")  # of the workload
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


def run(stage: Any, kind: str, *rest: str) -> None:
    """Run a stage. Inputs and work files are checked before, and those that it keeps get their checksums after."""
    from cmcore.pipeline.guard import READ, check_inputs

    if kind not in READ:
        stage.main(*rest)
        return
    from cmcore.pipeline.common import load
    from cmcore.pipeline.process import DRIVER, tell
    from cmcore.pipeline.work import mend_run, mend_shards, seal

    setup = load()
    if DRIVER not in os.environ:  # which has checked them
        check_inputs(setup.folders.root, setup.folders.outputs, kind)
    if kind not in ("train", "evaluate"):
        stage.main(*rest)
        return
    (name,) = rest
    if kind == "evaluate":
        mend_shards(setup, name, tell)
        stage.main(name)
        seal(setup, name)
        return
    for replicate in range(setup.project.replicates(name)):
        mend_run(setup, name, replicate, tell)
    stage.main(name)


if __name__ == "__main__":
    if signal.getsignal(signal.SIGINT) == signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # which ends the imports, of seconds, without a traceback
    main(sys.argv[1:])
