"""Plug-ins by name, and the import closure that fingerprints and dvc.yaml rely on."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from cmcore import plugins
from cmcore.closure import ROOT, import_closure, imported_modules, module_file, source_digest

METHODS = plugins.available("cmcore.methods")


def test_the_methods_of_the_spine_are_found():
    assert {"cd", "ct", "ect", "edm", "ict", "scd", "sct"} <= set(METHODS)
    assert {"mlp", "unet"} <= set(plugins.available("cmcore.nets"))
    assert not {"base", "layers", "__init__"} & {*METHODS, *plugins.available("cmcore.nets")}


@pytest.mark.parametrize("package", ["cmcore.methods", "cmcore.nets"])
def test_every_plugin_has_config_and_build(package: str):
    for name in plugins.available(package):
        module = plugins.load(package, name)
        assert callable(module.build)
        assert module.Config.__dataclass_params__.frozen


@pytest.mark.parametrize("name", ["ectt", "base", "../ect", "os", ""])
def test_an_unknown_plugin_lists_the_known_ones(name: str):
    with pytest.raises(ValueError, match=r"expected one of cd, ct, ect") as caught:
        plugins.load("cmcore.methods", name)
    assert ("did you mean 'ect'" in str(caught.value)) == (name in ("ectt", "../ect"))


def tree(folder: Path) -> Path:
    files = {
        "cmcore/__init__.py": "",
        "cmcore/a.py": "import torch\nimport cmcore.b\nfrom cmcore.sub import c, VALUE\n",
        "cmcore/b.py": "def f():\n    from cmcore import a  # a circle, inside a function\n",
        "cmcore/sub/__init__.py": "VALUE = 1\n",
        "cmcore/sub/c.py": "",
        "cmcore/d.py": "from . import a\n",
        "cmcore/alone.py": "",
    }
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


def test_the_closure_follows_imports_with_their_packages(tmp_path: Path):
    found = {path.as_posix() for path in import_closure(["cmcore.a"], tree(tmp_path))}
    assert found == {f"cmcore/{name}.py" for name in ("__init__", "a", "b", "sub/__init__", "sub/c")}
    assert imported_modules(tmp_path / "cmcore/a.py") == {"cmcore.b", "cmcore.sub", "cmcore.sub.c", "cmcore.sub.VALUE"}


def test_a_source_is_parsed_once_and_again_when_it_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Threads that train side by side must not parse: CPython 3.11 counts their trees together."""
    root, parsed, parse = tree(tmp_path), [], ast.parse
    monkeypatch.setattr(ast, "parse", lambda source, filename: parsed.append(filename) or parse(source, filename))
    first = import_closure(["cmcore.a"], root)
    assert len(parsed) == len(first) == 5
    assert import_closure(["cmcore.a"], root) == first
    assert len(parsed) == 5
    (root / "cmcore/b.py").write_text("from cmcore import alone\n")
    assert len(import_closure(["cmcore.a"], root)) == 6
    assert [Path(name).name for name in parsed[5:]] == ["b.py", "alone.py"]


def test_the_digest_changes_with_the_closure_only(tmp_path: Path):
    root = tree(tmp_path)
    before = source_digest(["cmcore.a"], root)
    (root / "cmcore/alone.py").write_text("x = 1\n")
    assert source_digest(["cmcore.a"], root) == before
    (root / "cmcore/sub/c.py").write_text("x = 1\n")
    assert source_digest(["cmcore.a"], root) != before


def test_roots_and_imports_that_cannot_be_followed_are_refused(tmp_path: Path):
    root = tree(tmp_path)
    with pytest.raises(ValueError, match=r"got 'cmcore\.nothing'"):
        import_closure(["cmcore.nothing"], root)
    with pytest.raises(ValueError, match=r"d.py:1: expected absolute imports"):
        import_closure(["cmcore.d"], root)


def test_a_method_depends_on_its_own_file_only():
    for name in METHODS:
        files = {path.as_posix() for path in import_closure([f"cmcore.methods.{name}"])}
        assert {f for f in files if f.startswith("cmcore/methods/")} == {
            f"cmcore/methods/{f}.py" for f in ("__init__", "base", name)
        }


def test_the_closure_holds_every_module_that_python_loads():
    # Python's own account, from a fresh process: whatever importing the training root loads has to be in the closure.
    code = "import sys, cmcore.assemble.training; print(*[m for m in sys.modules if m.split('.')[0] == 'cmcore'])"
    loaded = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    files = {module_file(name) for name in loaded.split()}
    closure = {ROOT / path for path in import_closure(["cmcore.assemble.training"])}
    assert files <= closure
    assert all(ast.parse(path.read_text()) for path in closure)
