"""Plug-ins by name, and the import closure that fingerprints and DVC's stages rely on."""

import ast
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from cmcore import plugins
from cmcore.closure import LEFT_OUT, ROOT, canonical, import_closure, module_file, read_source, revision, source_digest
from cmcore.errors import DataError

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
    with pytest.raises(ValueError, match="expected one of " + ", ".join(plugins.available("cmcore.methods"))) as caught:
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
    imports = {"cmcore.b", "cmcore.sub", "cmcore.sub.c", "cmcore.sub.VALUE"}
    assert read_source(tmp_path / "cmcore/a.py").imports == imports


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


def test_a_data_file_counts_with_the_module_of_its_name(tmp_path: Path):
    root = tree(tmp_path)
    digests = [source_digest(["cmcore.a"], root)]
    for name, text in (("alone.yaml", "x"), ("b.yaml", "x"), ("b.yaml", "y")):
        (root / "cmcore" / name).write_text(text)
        digests.append(source_digest(["cmcore.a"], root))
    assert digests[0] == digests[1]
    assert len(set(digests)) == 3


def test_modules_that_decide_no_result_are_left_out_with_what_they_import(tmp_path: Path):
    (tmp_path / "cmcore/tracking").mkdir(parents=True)
    (tmp_path / "cmcore/a.py").write_text("import cmcore.tracking.base\n")
    (tmp_path / "cmcore/tracking/base.py").write_text("import cmcore.b\n")
    (tmp_path / "cmcore/b.py").write_text("")
    assert import_closure(["cmcore.a"], tmp_path) == {Path("cmcore/a.py")}


def test_every_module_that_is_left_out_exists():
    """A renamed one would come back into the closure, or hide something else."""
    assert [module for module in LEFT_OUT if module_file(module) is None] == []


def test_every_data_file_has_a_module_of_its_name():
    found = [path for path in (ROOT / "cmcore").rglob("*.*") if path.suffix in (".yaml", ".html", ".json", ".txt")]
    assert {path.name for path in found} == {"published.yaml", "page.html", "recipes.yaml", "toy.yaml", "toy.html"}
    assert all(path.with_suffix(".py").exists() for path in found)


BEFORE = """
@decorator(1)
def f(x, *rest, key=None, **more):
    return {"a": -x, **more} if x else f"{x!r:>{key}} {rest[0]:.3g}"
"""
SAME = '''"""A module."""
# A comment.
@decorator( 1 )
def f(x, *rest, key=None, **more):
    """A docstring."""
    return (  # another
        {'a': -x, **more}
        if x
        else f"{x!r:>{key}}" f" {rest[0]:.3g}"
    )
'''


def text(source: str) -> str:
    return "".join(canonical(ast.parse(source)))


def test_docstrings_comments_and_layout_decide_nothing():
    assert text(SAME) == text(BEFORE)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("-x", "+x"), ("(1)", "(True)"), ("(1)", "('1')"), ("*rest", "rest"), ("None", "0"), ("!r", "!s"), ("3g", "4g"),
        ("return", "yield"), ('"a"', "b'a'"), ("def", "async def"), ("f(x", "f(x: int"), ("@decorator(1)", ""),
    ],
)  # fmt: skip
def test_everything_else_does(old: str, new: str):
    assert old in BEFORE
    assert text(BEFORE.replace(old, new)) != text(BEFORE)


def test_the_canonical_text_is_frozen():
    """DVC's lock and the fingerprints of finished runs hold its digests."""
    assert text("def f(x=1.0, *, k) -> None:\n    'd'\n    return x.a[k:], u'b'\n") == (
        "Module(body=[FunctionDef(name='f',args=arguments(args=[arg(arg='x',)]kwonlyargs=[arg(arg='k',)]"
        "kw_defaults=[None,]defaults=[Constant(value=1.0,)])body=[Return(value=Tuple(elts=[Subscript("
        "value=Attribute(value=Name(id='x',)attr='a',)slice=Slice(lower=Name(id='k',)))Constant(value='b',)]))]"
        "returns=Constant())])"
    )


DIGESTS = """
import ast, hashlib, pathlib
from cmcore.closure import PACKAGES, canonical
for path in sorted(path for name in PACKAGES for path in pathlib.Path(name).rglob("*.py")):
    print(path, hashlib.sha256("".join(canonical(ast.parse(path.read_bytes()))).encode()).hexdigest())
"""


@pytest.mark.parametrize("minor", [11, 12, 13])
def test_every_version_of_python_gives_the_same_digests(minor: int):
    def digests(python: str) -> str:
        done = subprocess.run([python, "-c", DIGESTS], cwd=ROOT, capture_output=True, text=True, check=False)
        return done.stdout if done.returncode == 0 else ""

    other = shutil.which(f"python3.{minor}")
    said = digests(other) if other else ""
    if not said:
        pytest.skip(f"there is no Python 3.{minor}")
    assert said == digests(sys.executable)


def test_roots_and_imports_that_cannot_be_followed_are_refused(tmp_path: Path):
    root = tree(tmp_path)
    with pytest.raises(ValueError, match=r"got 'cmcore\.nothing'"):
        import_closure(["cmcore.nothing"], root)
    with pytest.raises(ValueError, match=r"d.py:1: expected absolute imports"):
        import_closure(["cmcore.d"], root)
    (root / "cmcore/d.py").write_text("x = 1\ndef\n")
    with pytest.raises(DataError, match=r"d.py:2: expected Python, got an error of syntax: invalid syntax"):
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
    files = {module_file(name) for name in set(loaded.split()) - LEFT_OUT}
    closure = {ROOT / path for path in import_closure(["cmcore.assemble.training"])}
    assert files <= closure
    assert all(ast.parse(path.read_text()) for path in closure)


def test_the_revision_is_that_of_the_sources(tmp_path: Path):
    assert revision(tmp_path / "nowhere") == revision(tmp_path) == "unknown"
    (tmp_path / "cmcore").mkdir()
    (tmp_path / "cmcore/a.py").write_text("x = 1\n")
    (tmp_path / "dvc.lock").write_text("a\n")
    git = [
        "git",
        "-C",
        str(tmp_path),
        "-c",
        "user.name=a",
        "-c",
        "user.email=a@b",
        "-c",
        "commit.gpgsign=false",
    ]
    for words in (["init", "-q"], ["add", "."], ["commit", "-qm", "a"]):
        subprocess.run([*git, *words], check=True)
    commit = subprocess.run([*git, "rev-parse", "HEAD"], check=True, capture_output=True, text=True).stdout.strip()

    def now() -> str:
        revision.cache_clear()
        return revision(tmp_path)

    (tmp_path / "dvc.lock").write_text("b\n")
    assert now() == commit, "results that differ make no code dirty"
    (tmp_path / "cmcore/a.py").write_text("x = 2\n")
    assert now() == f"{commit}-dirty"
    (tmp_path / "cmcore/a.py").write_text("x = 1\n")
    (tmp_path / "cmcore/b.py").write_text("x = 1\n")
    assert now() == f"{commit}-dirty"
    assert revision(tmp_path / "cmcore") == "unknown", "code below another repository is not of it"
    revision.cache_clear()
