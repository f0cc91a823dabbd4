"""Changes of params.yaml that keep its comments, its order and the numbers as they were written."""

import io
from collections.abc import Mapping
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


def changed(text: str, changes: Mapping[str, Any]) -> str:
    """The YAML text with the changes laid over it."""
    yaml = YAML()
    yaml.preserve_quotes = True
    yaml.width = 4096
    data = yaml.load(text)
    lay_over(data, changes)
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
