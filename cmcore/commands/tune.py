"""`cmlab tune`: a search of the active workload, and the report with it."""

from cmcore.commands import report
from cmcore.commands.programs import run_module
from cmcore.config import require
from cmcore.pipeline.common import load


def tune(name: str) -> int:
    """Run a search in the working directory's project; the result is the exit code.

    Raises:
        ConfigError: params.yaml is wrong, or describes no such search.
    """
    searches = load().project.sections.tune
    known = f"one of {', '.join(searches)}" if searches else "a search, and the section tune of params.yaml has none"
    require(name in searches, "NAME", known, name)
    return run_module("dvc", "repro", f"searches/dvc.yaml:tune@{name}") or report.main()
