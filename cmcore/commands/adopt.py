"""`make adopt NAME=<search>`: write the best values of a search into params.yaml, comments and order kept."""

import io
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap

from cmcore.assemble.project import parse_project
from cmcore.atomic import write_atomic
from cmcore.config import ConfigError, flatten, load_yaml, merge
from cmcore.pipeline.common import PARAMS, load
from cmcore.report.readers import ReportError
from cmcore.report.search_sections import verdict
from cmcore.report.searches import read_searches

BEST = "best.yaml"


def lay_over(target: Any, changes: Mapping[str, Any]) -> None:
    """Lay `changes` over a YAML mapping, mapping by mapping, in place; new mappings are written on one line."""
    for key, value in changes.items():
        if isinstance(value, Mapping) and isinstance(target.get(key), Mapping):
            lay_over(target[key], value)
        elif isinstance(value, Mapping):
            target[key] = CommentedMap()
            target[key].fa.set_flow_style()
            lay_over(target[key], value)
        elif key not in target or target[key] != value:  # an equal number stays as it was written
            target[key] = value


def adopted(text: str, changes: Mapping[str, Any]) -> str:
    """The YAML text with the changes laid over it."""
    yaml = YAML()
    yaml.preserve_quotes = True
    yaml.width = 4096
    data = yaml.load(text)
    lay_over(data, changes)
    out = io.StringIO()
    yaml.dump(data, out)
    return out.getvalue()


def adopt(name: str, root: Path) -> str:
    """Change params.yaml, and the workload's own file where it was the same; say what was done, and what it is worth.

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
    after = adopted(before, changes)
    said = ", ".join(f"{path}: {value}" for path, value in flatten(changes).items())
    worth = [verdict(search) for search in read_searches(folder) if search.name == name]
    shipped = root / "workloads" / f"{project.workload}.yaml"
    same = shipped.is_file() and shipped.read_text(encoding="utf-8") == before
    if merge(load_yaml(active), changes) == load_yaml(active):
        done = [f"{PARAMS} holds these values already: {said}"]
    else:
        write_checked(active, after, merge(load_yaml(active), changes))
        done = [f"{PARAMS} changed: {said}", "`make repro` trains what depends on it"]
        if same:
            write_atomic(shipped, after.encode())
            done.insert(1, f"{shipped.relative_to(root)} changed in the same way")
    if shipped.is_file() and not same:
        done.append(
            f"{shipped.relative_to(root)} differs from {PARAMS} and stays as it is: `make use` would bring it back"
        )
    return "\n".join([*done, *worth])


def write_checked(path: Path, text: str, expected: Mapping[str, Any]) -> None:
    """Replace the file, if the text is a valid parameter file with exactly the expected values."""
    parse_project(expected)
    trial = path.with_name(f".{path.name}.adopt")
    try:
        trial.write_text(text, encoding="utf-8")
        if load_yaml(trial) != expected:
            raise ConfigError(str(path), "could not be rewritten with its comments kept; paste best.yaml by hand")
    finally:
        trial.unlink(missing_ok=True)
    write_atomic(path, text.encode())


if __name__ == "__main__":
    try:
        print(adopt(sys.argv[1] if len(sys.argv) > 1 else "", Path.cwd()))
    except (ConfigError, ReportError) as error:
        sys.exit(str(error))
