"""`cmlab adopt`: the best values of a search, written into params.yaml."""

from pathlib import Path

from cmcore.atomic import write_atomic
from cmcore.commands.parameter_file import changed, write_checked
from cmcore.config import PARAMS, ConfigError, flatten, load_yaml, merge
from cmcore.pipeline.common import load
from cmcore.report.search_sections import verdict
from cmcore.report.searches import read_searches

BEST = "best.yaml"


def adopt(name: str, root: Path) -> list[str]:
    """Change params.yaml, and the workload's own file where it was the same.

    Returns:
        Lines: the changes, and whether the values were better when compared on other seeds.

    Raises:
        ConfigError: the search has no result, or its values do not fit into the file any more.
        ReportError: its files are damaged.
    """
    project = load(root).project
    folder = root / "reports" / project.workload / "tune"
    found = {path.parent.name: path for path in sorted(folder.glob(f"[!.]*/{BEST}"))}
    if name not in project.sections.tune or name not in found:
        there = ", ".join(entry for entry in project.sections.tune if entry in found)
        raise ConfigError("NAME", f"expected a search that has run ({there or 'none has'}), got {name!r}")
    changes, active = load_yaml(found[name]), root / PARAMS
    before = active.read_text(encoding="utf-8")
    after = changed(before, changes)
    said = ", ".join(f"{path}: {value}" for path, value in flatten(changes).items())
    worth = [verdict(search) for search in read_searches(folder) if search.name == name]
    shipped = root / "workloads" / f"{project.workload}.yaml"
    same = shipped.is_file() and shipped.read_text(encoding="utf-8") == before
    if merge(load_yaml(active), changes) == load_yaml(active):
        done = [f"{PARAMS} holds these values already: {said}"]
    else:
        write_checked(active, after, merge(load_yaml(active), changes))
        done = [f"{PARAMS} changed: {said}", "`cmlab repro` trains what depends on it"]
        if same:
            write_atomic(shipped, after.encode())
            done.insert(1, f"{shipped.relative_to(root)} changed in the same way")
    if shipped.is_file() and not same:
        done.append(
            f"{shipped.relative_to(root)} differs from {PARAMS} and stays as it is: `cmlab use` would bring it back"
        )
    return [*done, *worth]
