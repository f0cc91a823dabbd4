"""YAML -> frozen dataclasses, strictly. Imports no torch.

A config class is a frozen, keyword-only dataclass. `read` refuses unknown keys, missing keys and wrong types, naming
the dotted path, what was expected and what was got; range checks live in `__post_init__` as `require(...)` calls.
"""

import dataclasses
import difflib
import functools
import hashlib
import json
import re
import sys
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar, Union

import yaml

from cmcore import limits
from cmcore.errors import printable, reason

C = TypeVar("C")
PARAMS = "params.yaml"  # the active parameter file, in the project folder
LONGEST = 400  # characters of a message


class ConfigError(ValueError):
    """A parameter is wrong. The message is one line that starts with the parameter's dotted path."""

    def __init__(self, path: str, message: str) -> None:
        self.path, self.message = path, message
        # The value in the message may be a whole section, and hold any character.
        super().__init__(f"{printable(path or 'params')}: {printable(message, LONGEST)}")


def require(condition: bool, key: str, expected: str, got: object) -> None:
    """Check one field inside `__post_init__`; `read` prefixes the dotted path of the section."""
    if not condition:
        raise ConfigError(key, f"expected {expected}, got {got!r}")


class _Loader(yaml.SafeLoader):
    """YAML 1.2's core schema. PyYAML itself reads YAML 1.1, where `1e-4` is a string and `no` is a boolean."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)  # pyright: ignore[reportUnknownMemberType]
            if key in keys:
                raise yaml.constructor.ConstructorError(None, None, f"the key {key!r} stands twice", node.start_mark)
            keys.add(key)
        return super().construct_mapping(node, deep)

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        """Nothing: merge keys are no part of YAML 1.2, and merges of merges can be of any size."""

    def construct_integer(self, node: yaml.ScalarNode) -> int:
        """Decimal digits, also after a leading zero, where YAML 1.1 reads octal; 0o and 0x say otherwise."""
        text = node.value
        if len(text) > 1000:  # Python itself would refuse to print such a number, in an error message for instance
            raise yaml.constructor.ConstructorError(None, None, f"a number of {len(text)} digits", node.start_mark)
        return int(text, {"0o": 8, "0x": 16}.get(text[:2], 10))


_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_integer)
_Loader.yaml_implicit_resolvers = {}
for _tag, _pattern, _first in (
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("int", r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", "-+0123456789"),
    (
        "float",
        r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        "-+.0123456789",
    ),
):
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(rf"^(?:{_pattern})$"), list(_first))


def load_yaml(path: str | Path) -> dict[str, Any]:
    """Read a YAML mapping with YAML 1.2 numbers.

    Raises:
        ConfigError: the file is missing, no mapping at the top, or refused by `parse_yaml`.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(str(path), f"cannot be read ({reason(error)})") from error
    data = parse_yaml(text, str(path))
    if not isinstance(data, dict):
        raise ConfigError(str(path), f"expected a mapping at the top, got {type(data).__name__}")
    return data


def parse_yaml(text: str, path: str) -> Any:
    """Parse YAML 1.2 text.

    Raises:
        ConfigError: it is not YAML, repeats a key, has a recursive alias, or is larger or deeper than parameters can
            be; the message starts with `path`.
    """
    if len(text) > limits.YAML_CHARACTERS:
        raise ConfigError(path, f"expected at most {limits.YAML_CHARACTERS} characters, got {len(text)}")
    try:
        data = yaml.load(text, Loader=_Loader)
    except Exception as error:  # wrong explicit tags, as in `!!map [1]`, and deep nesting raise many kinds
        raise ConfigError(path, f"is not valid YAML: {reason(error, LONGEST)}") from error
    if _expanded(data, {}, limits.YAML_DEPTH) > limits.YAML_NODES:
        raise ConfigError(
            path,
            f"expected at most {limits.YAML_NODES} values, nested {limits.YAML_DEPTH} deep, with no alias that "
            "contains itself, got more",
        )
    return data


def _expanded(data: object, known: dict[int, int], depth: int) -> int:
    """Number of values with each alias counted as all that it stands for; endless for a recursive alias."""
    children = list(data.values()) if isinstance(data, dict) else data if isinstance(data, list) else ()
    if not children:
        return 1
    if depth == 0:
        return limits.YAML_NODES + 1
    if id(data) not in known:
        known[id(data)] = limits.YAML_NODES + 1  # until it is counted: a child that meets it contains itself
        known[id(data)] = 1 + sum(_expanded(child, known, depth - 1) for child in children)
    return known[id(data)]


def join(path: str, key: str) -> str:
    """Dotted path of a key; one that cannot be printed on one line is quoted."""
    shown = key if key and key.isprintable() else ascii(key)
    return f"{path}.{shown}" if path else shown


def read(cls: type[C], data: object, path: str = "") -> C:
    """Build the config class `cls` from plain data; a ConfigError has the dotted path of the first wrong value."""
    if not isinstance(data, Mapping):
        raise ConfigError(path, f"expected a mapping, got {data!r}")
    hints = _hints(cls)
    fields = {field.name: field for field in dataclasses.fields(cls)}  # pyright: ignore[reportArgumentType]
    for key in data:
        if key not in fields:
            close = difflib.get_close_matches(str(key), fields, n=1)
            hint = f"did you mean {close[0]!r}? " if close else ""
            raise ConfigError(join(path, str(key)), f"unknown key; {hint}known keys: {', '.join(fields) or 'none'}")
    for name, field in fields.items():
        required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if required and name not in data:
            raise ConfigError(join(path, name), f"is missing; expected {_describe(hints[name])}")
    values = {name: _convert(hints[name], value, join(path, name)) for name, value in data.items()}
    try:
        return cls(**values)
    except ConfigError as error:
        raise ConfigError(join(path, error.path), error.message) from error


_hints = functools.cache(typing.get_type_hints)


def _describe(hint: Any) -> str:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        return "one of " + ", ".join(map(str, args))
    if origin in (Union, types.UnionType):
        return " or ".join(_describe(arg) for arg in args)
    if origin is tuple:
        same = args[-1] is Ellipsis
        return f"a list of {_describe(args[0])}" if same else "a list of " + ", ".join(map(_describe, args))
    if origin is dict or dataclasses.is_dataclass(hint):
        return "a mapping"
    return {int: "a whole number", float: "a number", bool: "true or false", str: "text", type(None): "null"}.get(
        hint, str(hint)
    )


def _convert(hint: Any, value: Any, path: str) -> Any:
    """`value` as the annotated type, or a ConfigError. Only int -> float is converted; nothing is guessed."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    wrong = ConfigError(path, f"expected {_describe(hint)}, got {value!r}")
    if hint is Any:
        return value
    if dataclasses.is_dataclass(hint):
        return read(typing.cast("type[Any]", hint), value, path)
    if origin is Literal:
        if any(value == arg and type(value) is type(arg) for arg in args):
            return value
        raise wrong
    if origin in (Union, types.UnionType):
        sections = [arg for arg in args if dataclasses.is_dataclass(arg)]
        if sections and isinstance(value, Mapping):  # its own fields say what is wrong
            return _convert(sections[0], value, path)
        for arg in args:
            try:
                return _convert(arg, value, path)
            except ConfigError:
                continue
        raise wrong
    if origin is tuple:
        if not isinstance(value, (list, tuple)):
            raise wrong
        items = [args[0]] * len(value) if args[-1] is Ellipsis else args
        if len(value) != len(items):
            raise ConfigError(path, f"expected {len(items)} values, got {len(value)}")
        pairs = zip(items, value, strict=True)
        return tuple(_convert(item, part, f"{path}[{index}]") for index, (item, part) in enumerate(pairs))
    if origin is dict:
        if not isinstance(value, Mapping):
            raise wrong
        for key in value:
            if not isinstance(key, str) or not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*", key):
                raise ConfigError(join(path, str(key)), "expected a name of letters, digits, '_' and '-'")
        return {key: _convert(args[1], item, join(path, key)) for key, item in value.items()}
    if hint is float and type(value) in (int, float):
        if not abs(value) <= sys.float_info.max:
            raise ConfigError(path, f"expected a finite number, got {value!r}")
        return float(value)
    if hint in (int, bool, str, type(None)) and type(value) is hint:
        return value
    raise wrong


def merge(base: Mapping[str, Any], override: Mapping[str, Any]) -> dict[str, Any]:
    """`base` with the values of `override` laid over it, mapping by mapping; lists are replaced whole."""
    merged = dict(base)
    for key, value in override.items():
        old = merged.get(key)
        merged[key] = merge(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return merged


def plain(config: Any) -> Any:
    """A config (or a container of them) as plain JSON data."""
    if dataclasses.is_dataclass(config) and not isinstance(config, type):
        return {field.name: plain(getattr(config, field.name)) for field in dataclasses.fields(config)}
    if isinstance(config, Mapping):
        return {str(key): plain(value) for key, value in config.items()}
    if isinstance(config, (list, tuple)):
        return [plain(item) for item in config]
    return config


def flatten(config: Any, path: str = "") -> dict[str, Any]:
    """Dotted path -> leaf value, for trackers and tables."""
    data = plain(config)
    if not isinstance(data, dict):
        return {path: data}
    return {k: v for key, value in data.items() for k, v in flatten(value, join(path, key)).items()}


def digest(config: Any) -> str:
    """Hex digest of a config: equal for equal values, whatever the order of the keys."""
    return hashlib.sha256(json.dumps(plain(config), sort_keys=True).encode()).hexdigest()[:16]
