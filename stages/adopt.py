"""`make adopt NAME=<search>`: write the best values of a search into params.yaml, comments and order kept."""

import io
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap

from cmcore.assemble.project import parse_project
from cmcore.config import ConfigError, flatten, join, load_yaml, merge
from cmcore.train.checkpoint import write_atomic
from stages.common import PARAMS, load


def lay_over(target: Any, changes: Mapping[str, Any]) -> None:
    """Lay `changes` over a YAML mapping, mapping by mapping, in place; new mappings are written on one line."""
    for key, value in changes.items():
        if isinstance(value, Mapping) and isinstance(target.get(key), Mapping):
            lay_over(target[key], value)
        elif isinstance(value, Mapping):
            target[key] = CommentedMap()
            target[key].fa.set_flow_style()
            lay_over(target[key], value)
        else:
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
    """Change params.yaml, and the workload's own file where it was the same, and say what was done.

    Raises:
        ConfigError: the search has no result, or its values do not fit into the file any more.
    """
    project = load(root).project
    best = root / "reports" / project.workload / "tune" / name / "best.yaml"
    if name not in project.sections.tune or not best.is_file():
        raise ConfigError(
            join("tune", name), f"expected a search that has run (`make tune NAME={name}`), got no {best}"
        )
    changes, active = load_yaml(best), root / PARAMS
    before = active.read_text(encoding="utf-8")
    after = adopted(before, changes)
    write_checked(active, after, merge(load_yaml(active), changes))
    files = [active.name]
    shipped = root / "workloads" / f"{project.workload}.yaml"
    if shipped.is_file() and shipped.read_text(encoding="utf-8") == before:
        write_atomic(shipped, after.encode())
        files.append(shipped.relative_to(root).as_posix())
    said = ", ".join(f"{path}: {value}" for path, value in flatten(changes).items())
    return f"{' and '.join(files)} changed: {said}; `make repro` trains what depends on it"


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
    except ConfigError as error:
        sys.exit(str(error))
