"""Whatever is done to params.yaml, reading it gives a project that can be built, or one line with a dotted path.

The whole of what a stage does with the file before it computes anything is under test: sections, runs, and how things
are run and tracked.
"""

import copy
import json
import os
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from cmcore.assemble.models import ModelShape, build_denoiser
from cmcore.assemble.project import Project
from cmcore.assemble.run import resolved
from cmcore.config import ConfigError, load_yaml
from cmcore.pipeline.common import load

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "workloads" / "digits.yaml").read_text(encoding="utf-8")
# Two runs say as much as seven, in a third of the time.
BASE: dict[str, Any] = load_yaml(ROOT / "workloads" / "digits.yaml")
BASE["runs"] = {name: run for name, run in BASE["runs"].items() if name in ("edm", "ect")}
BASE["tune"] = {name: search for name, search in BASE["tune"].items() if search["base"] in BASE["runs"]}
# One point to start from says as much as three, which would be a quarter of all places.
BASE["tune"] = {name: search | {"start": search.get("start", [])[:1]} for name, search in BASE["tune"].items()}
BASE["tracking"] |= {"uri": "", "experiment": "x"}
FUZZ = settings(
    max_examples=int(os.environ.get("MUTATIONS", 140)) // 2,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)

Place = tuple[Any, ...]  # keys from the top of the file to a value


def places(data: Any, place: Place = ()) -> Iterator[Place]:
    """The places of all values, from the top."""
    if place:
        yield place
    items = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()
    for key, value in items:
        yield from places(value, (*place, key))


def at(data: Any, place: Place) -> Any:
    for key in place:
        data = data[key]
    return data


numbers = st.one_of(
    st.integers(-3, 3),
    st.integers(),
    st.sampled_from(
        [10**30, -(10**400), 2**63, 1e308, -1e308, 5e-324, -0.0, float("nan"), float("inf"), float("-inf")]
    ),
    st.floats(),
)
scalars = st.one_of(
    numbers,
    st.none(),
    st.booleans(),
    st.text(max_size=8),
    st.sampled_from(["1e-4", "no", "random", "../x", "a\nb", "${x}"]),
)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=4,
)
KNOWN = sorted({str(key) for place in places(BASE) for key in place})
keys = st.one_of(st.sampled_from(KNOWN), st.text(max_size=6), st.none(), st.booleans(), st.integers(), st.floats())


def near(draw: st.DrawFn, value: Any) -> Any:
    """A value that is nearly right: of another size or sign, as text, or in one container more."""
    changes: list[Callable[[Any], Any]] = [str, lambda v: [v], lambda v: {"value": v}, lambda v: [v, v]]
    if isinstance(value, (int, float)):
        changes += [
            lambda v: v * 2,
            lambda v: v / 2,
            lambda v: v + 1,
            lambda v: -v,
            lambda v: v * 10 ** draw(st.integers(1, 40)),
            lambda v: v + 0.5,
            lambda v: v == v,
        ]
    return draw(st.sampled_from(changes))(value)


@st.composite
def mutations(draw: st.DrawFn) -> Any:
    """The file's data after one to three changes."""
    data = copy.deepcopy(BASE)
    for _ in range(draw(st.sampled_from([1, 1, 1, 2, 3]))):
        everywhere = list(places(data))
        if not everywhere:
            break
        place = draw(st.sampled_from(everywhere))
        parent, key = at(data, place[:-1]), place[-1]
        match draw(st.sampled_from(["delete", "rename", "replace", "near", "near", "copy", "add"])):
            case "delete":
                del parent[key]
            case "rename" if isinstance(parent, dict):
                parent[draw(st.one_of(keys, st.just(f"{key}s"), st.just(str(key)[:-1])))] = parent.pop(key)
            case "near":
                parent[key] = near(draw, parent[key])
            case "copy":  # of another value of the file, which may be a whole section
                parent[key] = copy.deepcopy(at(data, draw(st.sampled_from(everywhere))))
            case "add" if isinstance(parent[key], dict):
                parent[key][draw(keys)] = draw(values)
            case _:
                parent[key] = draw(values)
    return data


@pytest.fixture(scope="module")
def counted() -> Iterator[Counter[str]]:
    """What came of the files; said at the end, for benchmarks/faults.py."""
    found = Counter[str]()
    yield found
    kinds = f"{found['accepted']} projects that can be built, {found['refused']} lines with a dotted path"
    print(f"\ncounted: {found.total()} parameter files: {kinds}")  # noqa: T201


@pytest.fixture
def judge(tmp_path: Path, counted: Counter[str]) -> Callable[[str], None]:
    """Reads a text as params.yaml and checks what comes of it."""

    def read(text: str) -> None:
        path = tmp_path / "params.yaml"
        path.write_text(text, encoding="utf-8", newline="")
        try:
            setup = load(tmp_path)
        except ConfigError as error:
            assert_one_line(error, str(path))
            counted["refused"] += 1
        else:
            assert_buildable(setup.project)
            counted["accepted"] += 1

    return read


def assert_one_line(error: ConfigError, file: str) -> None:
    said = str(error)
    assert said.isprintable(), said
    assert len(said) < 600, said
    assert error.path, said
    # A key that nobody knows is named by itself, with those that are known.
    section = error.path.partition(".")[0].partition("[")[0]
    assert error.path == file or section in BASE or "unknown key" in said, said


def assert_buildable(project: Project) -> None:
    """What is accepted can be described and built, so nothing is left to fail later for its form."""
    for run in project.runs.values():
        json.dumps(resolved(run), allow_nan=False)
        # One beyond any memory, or of millions of layers, is no question of form.
        if max(value for value in vars(run.net.config).values() if isinstance(value, int)) < 10**3:
            with torch.device("meta"):
                shape = ModelShape(project.sections.data.channels, project.sections.data.resolution, 0)
                build_denoiser(run.net, shape, run.diffusion, boundary=run.objective.traits.boundary)


@FUZZ
@given(mutations())
def test_mutated_data(judge: Callable[[str], None], data: Any):
    judge(yaml.safe_dump(data, allow_unicode=True, sort_keys=False))


@st.composite
def damages(draw: st.DrawFn) -> str:
    """The text of the shipped file after some harm to its lines and characters."""
    lines = TEXT.splitlines(keepends=True)
    for _ in range(draw(st.integers(1, 2))):
        line = draw(st.integers(0, len(lines) - 1))
        other = draw(st.integers(0, len(lines) - 1))
        column = draw(st.integers(0, len(lines[line])))
        harm = draw(st.sampled_from(["drop", "twice", "move", "indent", "insert", "insert", "cut", "join"]))
        match harm:
            case "drop":
                lines[line] = ""
            case "twice":
                lines[line] *= 2
            case "move":
                lines[line], lines[other] = lines[other], lines[line]
            case "indent":
                lines[line] = draw(st.sampled_from([" ", "  ", "\t", "    ", "- ", "? "])) + lines[line]
            case "insert":
                inserted = draw(
                    st.sampled_from(
                        [*":-[]{}&*!|>%@`'\"#,?\t\n\r\0", "<<: *a", "!!python/object:os.system ", "é", "\ud7ff", "0x"]
                    )
                )
                lines[line] = lines[line][:column] + inserted + lines[line][column:]
            case "cut":
                lines[line] = lines[line][:column]
            case _:
                lines[line] = lines[line].rstrip("\n")
    return "".join(lines)


SMALL = (
    "workload: x\ndata: {}\ndiffusion: {}\nnet: {kind: mlp}\ntrain: {images: 1, batch: 1}\n"
    "runs: {a: {method: edm, init: random, teacher: none}}\n"
)


@FUZZ
@given(damages())
@example(SMALL + f"conditional: 0x{'f' * 5000}\n")
@example(SMALL + f"conditional: {'9' * 5000}\n")
@example(SMALL + "'a\\nb': 1\n")
@example(SMALL + '"\\e[2J\\u2028": 1\n')
@example(SMALL + "tune: " + "[" * 400 + "]" * 400 + "\n")
@example(SMALL + "tune: &a {b: *a}\n")
@example(SMALL + "&a net: 1\n")
@example("- 1\n")
@example("")
def test_damaged_text(judge: Callable[[str], None], text: str):
    judge(text)


def test_the_unchanged_file_is_valid(judge: Callable[[str], None]):
    judge(SMALL)
    judge(yaml.safe_dump(BASE))


def test_both_outcomes_happen(tmp_path: Path):
    """The properties above would hold for a reader that refuses everything."""
    outcomes = []

    @settings(FUZZ, max_examples=100)
    @given(mutations())
    def count(data: Any) -> None:
        (tmp_path / "params.yaml").write_text(yaml.safe_dump(data), encoding="utf-8")
        try:
            load(tmp_path)
            outcomes.append(True)
        except ConfigError:
            outcomes.append(False)

    count()
    assert 3 <= sum(outcomes) <= len(outcomes) - 3
