"""`make report`: the tables, figures and page again, from what is there. Nothing is trained, measured or searched."""

import sys

from cmcore.config import ConfigError
from stages.common import Setup, load
from stages.repro import LAST, start


def missing(setup: Setup) -> str:
    """What the report needs and is not there, or nothing."""
    folders = setup.folders
    needed = (folders.reference / "reference.json", folders.runs, folders.samples, folders.reports / "metrics")
    return next((path.relative_to(folders.root).as_posix() for path in needed if not path.exists()), "")


def main() -> int:
    """Make DVC run the last stage alone, and seal it; the result is the exit code.

    Searches are no dependency of the report, as `dvc repro` would then run them: this is how a new one gets into it.
    """
    try:
        setup = load()
    except ConfigError as error:
        print(f"params.yaml: {error}", file=sys.stderr)
        return 2
    if path := missing(setup):
        print(f"there is no {path} yet: `make repro` makes it, and the report with it")
        return 0
    return start({}, "dvc", "repro", "--quiet", "--single-item", "--force", LAST).wait()


if __name__ == "__main__":
    sys.exit(main())
