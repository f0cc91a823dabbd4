"""Strict configuration: what is accepted, and that everything else is refused with its dotted path."""

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest
import yaml
from hypothesis import example, given
from hypothesis import strategies as st

from cmcore.config import ConfigError, digest, flatten, load_yaml, merge, plain, read, require


@dataclass(frozen=True, kw_only=True)
class Inner:
    rate: float = 1e-4
    kind: Literal["a", "b"] = "a"
    levels: tuple[float, ...] = ()
    pair: tuple[int, str] = (1, "x")

    def __post_init__(self) -> None:
        require(self.rate > 0, "rate", "a positive number", self.rate)


@dataclass(frozen=True, kw_only=True)
class Outer:
    count: int
    name: str = ""
    flag: bool = False
    limit: int | None = None
    inner: Inner = Inner()
    many: dict[str, Inner] = field(default_factory=dict)
    free: dict[str, Any] = field(default_factory=dict)


def parse(text: str, folder: Path) -> dict[str, Any]:
    path = folder / "params.yaml"
    path.write_text(text, encoding="utf-8")
    return load_yaml(path)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4", 1e-4), ("1E3", 1000.0), ("-2.5e+3", -2500.0), (".5", 0.5), ("5.", 5.0), ("+1.5", 1.5),
        ("0o17", 15), ("0x1F", 31), ("010", 10), ("08", 8), ("-007", -7), ("12", 12),
        ("1_000", "1_000"), ("1:30", "1:30"),
        ("true", True), ("False", False), ("no", "no"), ("on", "on"), ("y", "y"),
        ("~", None), ("null", None), ("", None), ("2001-01-01", "2001-01-01"), ("'1e-4'", "1e-4"), ("e5", "e5"),
    ],
)  # fmt: skip
def test_scalars_follow_yaml_1_2(text: str, value: Any, tmp_path: Path):
    got = parse(f"key: {text}\n", tmp_path)["key"]
    assert (type(got), got) == (type(value), value)


def test_infinity_is_a_yaml_float_but_no_parameter(tmp_path: Path):
    assert parse("key: -.inf", tmp_path)["key"] == -math.inf
    with pytest.raises(ConfigError, match=r"inner.rate: expected a finite number"):
        read(Outer, {"count": 1, "inner": parse("rate: .inf", tmp_path)})


@given(value=st.floats(allow_nan=False, allow_infinity=False))
@example(value=1e-4)
@example(value=1e22)
def test_every_float_as_python_writes_it_is_read_back(value: float, tmp_path_factory: pytest.TempPathFactory):
    assert parse(f"key: {value!r}", tmp_path_factory.getbasetemp())["key"] == value


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a: 1\na: 2", "'a' stands twice"), ("b: {a: 1, a: 2}", "'a' stands twice"), ("a: [1", "not valid YAML"),
        ("- 1", "expected a mapping at the top, got list"), ("", "got NoneType"), ("a: &x [*x]", "contains itself"),
        ("a: &x {b: {c: *x}}", "contains itself"), ("a: !!python/object:os.system {}", "not valid YAML"),
        ("a: !!map [1]", "not valid YAML"),
        ("a: !!int x", "not valid YAML"), ("a: !!timestamp x", "not valid YAML"), ("a: !!bool x", "not valid YAML"),
        ("? [a]\n: 1", "not valid YAML"), ("a: " + "[" * 1000, "not valid YAML"),
        ("a: \0", "not valid YAML"), ("a: " + "9" * 5000, "not valid YAML"),
    ],
)  # fmt: skip
def test_what_is_no_parameter_file_is_refused_in_one_line(text: str, words: str, tmp_path: Path):
    with pytest.raises(ConfigError) as caught:
        parse(text, tmp_path)
    assert words in str(caught.value)
    assert "params.yaml" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_aliases_may_be_shared_but_not_multiplied(tmp_path: Path):
    assert parse("a: &x {b: 1}\nc: [*x, *x]", tmp_path)["c"] == [{"b": 1}, {"b": 1}]
    doublings = "".join(f"l{i + 1}: &l{i + 1} [*l{i}, *l{i}]\n" for i in range(40))
    with pytest.raises(ConfigError, match="expected at most 16384 values"):
        parse("l0: &l0 [1, 2]\n" + doublings, tmp_path)


def test_missing_and_binary_files_are_refused(tmp_path: Path):
    with pytest.raises(ConfigError, match=r"absent.yaml: cannot be read"):
        load_yaml(tmp_path / "absent.yaml")
    (tmp_path / "b.yaml").write_bytes(b"\xff\xfe\x00a")
    with pytest.raises(ConfigError, match=r"b.yaml: cannot be read"):
        load_yaml(tmp_path / "b.yaml")


def test_a_valid_mapping_becomes_typed_values():
    data = {"count": 3, "inner": {"rate": 1, "levels": [1, 2.5], "pair": [2, "y"]}, "many": {"x": {"kind": "b"}}}
    config = read(Outer, data)
    assert config.inner == Inner(rate=1.0, levels=(1.0, 2.5), pair=(2, "y"))
    assert isinstance(config.inner.rate, float)
    assert config.many["x"].kind == "b"
    assert config.limit is None


WRONG = [
    ({}, "count", "is missing; expected a whole number"),
    ({"count": 1, "inner": {"rat": 1.0}}, "inner.rat", "did you mean 'rate'"),
    ({"count": 1, "zzz": 1}, "zzz", "known keys: count, name"),
    ({"count": 1, 5: 1}, "5", "unknown key"),
    ({"count": "1"}, "count", "expected a whole number, got '1'"),
    ({"count": 1.0}, "count", "expected a whole number, got 1.0"),
    ({"count": True}, "count", "expected a whole number, got True"),
    ({"count": None}, "count", "expected a whole number, got None"),
    ({"count": 1, "flag": 1}, "flag", "expected true or false, got 1"),
    ({"count": 1, "name": 5}, "name", "expected text, got 5"),
    ({"count": 1, "limit": "x"}, "limit", "expected a whole number or"),
    ({"count": 1, "inner": 5}, "inner", "expected a mapping, got 5"),
    ({"count": 1, "inner": {"rate": "1e-4"}}, "inner.rate", "expected a number, got '1e-4'"),
    ({"count": 1, "inner": {"rate": True}}, "inner.rate", "expected a number, got True"),
    ({"count": 1, "inner": {"rate": 10**400}}, "inner.rate", "expected a finite number"),
    ({"count": 1, "inner": {"rate": float("nan")}}, "inner.rate", "expected a finite number"),
    ({"count": 1, "inner": {"rate": -1}}, "inner.rate", "expected a positive number, got -1.0"),
    ({"count": 1, "inner": {"kind": "c"}}, "inner.kind", "expected one of a, b, got 'c'"),
    ({"count": 1, "inner": {"levels": 3.0}}, "inner.levels", "expected a list of a number"),
    ({"count": 1, "inner": {"levels": "12"}}, "inner.levels", "expected a list of a number"),
    ({"count": 1, "inner": {"levels": b"12"}}, "inner.levels", "expected a list of a number"),
    ({"count": 1, "inner": {"levels": [1, "x"]}}, "inner.levels[1]", "expected a number, got 'x'"),
    ({"count": 1, "inner": {"pair": [1]}}, "inner.pair", "expected 2 values, got 1"),
    ({"count": 1, "inner": {"pair": [1, 2]}}, "inner.pair[1]", "expected text, got 2"),
    ({"count": 1, "many": {"x": {"rate": 0}}}, "many.x.rate", "expected a positive number"),
    ({"count": 1, "many": {"../x": {}}}, "many.../x", "expected a name"),
    ({"count": 1, "many": {3: {}}}, "many.3", "expected a name"),
    ({"count": 1, "many": []}, "many", "expected a mapping"),
]


@pytest.mark.parametrize(("data", "path", "words"), WRONG, ids=[row[1] for row in WRONG])
def test_wrong_values_name_their_dotted_path(data: dict[Any, Any], path: str, words: str):
    with pytest.raises(ConfigError) as caught:
        read(Outer, data, "top")
    assert caught.value.path == f"top.{path}"
    assert words in str(caught.value)


json_like = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text("ab._/é", max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("ab._/é", max_size=5), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.sampled_from(["count", "name", "flag", "limit", "inner", "many", "free", "x"]), json_like))
def test_any_data_is_read_or_refused_with_a_path(data: dict[str, Any]):
    try:
        count, path = read(Outer, data).count, "count"
    except ConfigError as error:
        count, path = data.get("count"), error.path
    assert count == data.get("count")
    assert path.split(".")[0] in {*data, "count"}


leaves = st.dictionaries(st.sampled_from("de"), st.integers())
mappings = st.dictionaries(st.sampled_from("abc"), st.integers() | leaves)


@given(mappings, mappings)
def test_merge_lays_leaves_over_leaves(base: dict[str, Any], over: dict[str, Any]):
    before = repr((base, over))
    merged = merge(base, over)
    for path, value in flatten(over).items():
        assert flatten(merged)[path] == value
    for path, value in flatten(base).items():
        key, _, rest = path.partition(".")
        kept = key not in over or (rest and isinstance(over[key], dict) and rest not in over[key])
        assert not kept or flatten(merged)[path] == value
    assert repr((base, over)) == before


def test_merge_replaces_lists_whole():
    assert merge({"a": [1, 2], "b": {"c": 1}}, {"a": [3], "b": 5}) == {"a": [3], "b": 5}


def test_plain_reads_back_to_the_same_config():
    config = read(Outer, {"count": 1, "many": {"x": {"levels": [1, 2]}}, "free": {"a": [1, {"b": 2}]}})
    assert read(Outer, plain(config)) == config
    assert read(Outer, yaml.safe_load(yaml.safe_dump(plain(config)))) == config
    assert flatten(config)["many.x.levels"] == [1.0, 2.0]


@given(st.permutations([("a", 1), ("b", {"x": 1.5, "y": [1, 2]}), ("c", "z")]))
def test_the_digest_does_not_depend_on_the_order_of_keys(items: list[tuple[str, Any]]):
    assert digest(dict(items)) == digest({"a": 1, "b": {"y": [1, 2], "x": 1.5}, "c": "z"})


def test_the_digest_depends_on_every_value():
    same = {digest(Inner()), digest(plain(Inner())), digest(Inner(rate=1e-4))}
    others = {digest(Inner(rate=2e-4)), digest(Inner(kind="b")), digest(Inner(levels=(1.0,))), digest({"rate": 1e-4})}
    assert len(same) == 1
    assert len(same | others) == 5
