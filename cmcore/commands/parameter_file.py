"""Changes of params.yaml that keep its comments, its order and the numbers as they were written."""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap

from cmcore.assemble.project import parse_project
from cmcore.atomic import write_atomic
from cmcore.config import ConfigError, load_yaml


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


def left_out(params: Mapping[str, Any], names: Sequence[str]) -> dict[str, list[str]]:
    """Entries by section that a comparison of these runs does without: other runs, and searches of those.

    Runs that one of them starts from or learns from belong to it.

    Raises:
        ConfigError: a name is of no run.
    """
    runs, searches = params.get("runs") or {}, params.get("tune") or {}
    kept, waiting = set[str](), list(names)
    while waiting:
        name = waiting.pop()
        if name not in runs:
            raise ConfigError("--runs", f"expected names of runs in params.yaml ({', '.join(runs)}), got {name!r}")
        kept.add(name)
        sources = {runs[name].get(key) for key in ("init", "teacher")}
        waiting += [source for source in sources if source in runs and source not in kept]
    dropped = {"runs": [name for name in runs if name not in kept]}
    return dropped | {"tune": [name for name, entry in searches.items() if entry.get("base") in dropped["runs"]]}


def without(params: Mapping[str, Any], dropped: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    """The parameters without some entries of their sections."""
    return {
        key: {name: entry for name, entry in value.items() if name not in dropped[key]} if dropped.get(key) else value
        for key, value in params.items()
    }


def changed(text: str, changes: Mapping[str, Any], dropped: Mapping[str, Sequence[str]] | None = None) -> str:
    """The YAML text with the changes laid over it, and without the entries of `dropped` by section."""
    yaml = YAML()
    yaml.preserve_quotes = True
    yaml.width = 4096
    data = yaml.load(text)
    lay_over(data, changes)
    for section, names in (dropped or {}).items():
        for name in names:
            del data[section][name]
    out = io.StringIO()
    yaml.dump(data, out)
    return out.getvalue()


def write_checked(path: Path, text: str, expected: Mapping[str, Any]) -> None:
    """Replace the file, if the text is a valid parameter file with exactly the expected values."""
    parse_project(expected)
    trial = path.with_name(f".{path.name}.trial")
    try:
        trial.write_text(text, encoding="utf-8")
        if load_yaml(trial) != expected:
            raise ConfigError(str(path), "could not be rewritten with its comments kept; change it by hand")
    finally:
        trial.unlink(missing_ok=True)
    write_atomic(path, text.encode())
