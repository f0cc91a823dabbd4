"""`cmlab report`: the tables, figures and page again, from what is there. Nothing is trained, measured or searched."""

import sys

from cmcore.commands.programs import run_module
from cmcore.commands.repro import tell_mlflow
from cmcore.config import ConfigError
from cmcore.pipeline.common import Setup, load


def missing(setup: Setup) -> str:
    """The first file or folder that the report needs and that does not exist, or ''."""
    folders = setup.folders
    needed = (
        folders.reference / "reference.json",
        folders.runs,
        folders.samples,
        folders.edits,
        folders.reports / "metrics",
    )
    return next((path.relative_to(folders.root).as_posix() for path in needed if not path.exists()), "")


def main() -> int:
    """Run the last stage alone through DVC; the result is the exit code.

    The report does not depend on searches, or `dvc repro` would run them. So a new one gets into it by this command.
    """
    try:
        setup = load()
    except ConfigError as error:
        print(f"params.yaml: {error}", file=sys.stderr)
        return 2
    if path := missing(setup):
        print(f"there is no {path} yet: `cmlab repro` makes it, and the report with it")
        return 0
    code = run_module("dvc", "repro", "--quiet", "--single-item", "--force", "tabulate")
    if not code:
        tell_mlflow(setup)
    return code
