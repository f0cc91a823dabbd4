"""A method is known to its own file alone: production code neither names it nor looks for fields of its Config."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest
from tiny import METHODS

ROOT = Path(__file__).resolve().parents[2]
FILES = sorted(file for folder in ("cmcore", "stages") for file in (ROOT / folder).rglob("*.py"))

OTHERWISE = {
    **{f"cmcore/methods/{name}.py": ["edm"] for name in ("ect", "tcm")},  # EDM's weighting of the levels
    "cmcore/assemble/results.py": ["edm", "cd", "ect"],  # the method of a public weight file, which names none
    "cmcore/commands/import_weights.py": ["edm", "cd"],  # the entry that it suggests for one
    "cmcore/assemble/toy.py": ["edm", "ect"],  # runs of toy.yaml
    "cmcore/report/toy.py": ["edm"],  # such a run
}


def strings(tree: ast.Module) -> Iterator[ast.Constant]:
    """String literals, but no docstrings."""
    lone = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in lone:
            yield node


def named(text: str, *allowed: str) -> list[str]:
    """Line and name of every literal that is the name of a method, other than those allowed."""
    found = (node for node in strings(ast.parse(text)) if node.value in METHODS and node.value not in allowed)
    return [f"{node.lineno}: {node.value}" for node in found]


def looked_up(text: str) -> list[str]:
    """Lines where attributes of a method's Config are looked up by name."""
    return [
        f"{node.lineno}: {ast.unparse(node)}"
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id in ("getattr", "hasattr", "setattr")
        and node.args
        and "method_config" in ast.unparse(node.args[0])
    ]


def told(file: Path) -> str:
    return file.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("file", FILES, ids=told)
def test_no_file_but_its_own_knows_a_method(file: Path):
    text = file.read_text(encoding="utf-8")
    own = [file.stem] if file.parent == ROOT / "cmcore/methods" else []
    assert named(text, *own, *OTHERWISE.get(told(file), [])) == []
    assert looked_up(text) == []


def test_both_are_found_where_they_are():
    text = '"""edm"""\nkind = "edm"\nx = getattr(run.method_config, "q", 0)\ny = {"ect": 1}\nz = "the edm"\n'
    assert named(text) == ["2: edm", "4: ect"]
    assert named(text, "ect") == ["2: edm"]
    assert looked_up(text) == ["3: getattr(run.method_config, 'q', 0)"]
