"""The source files that a module needs, and a digest of what they do: the static import closure inside the project.

Fingerprints of runs and the stages of DVC depend on this digest, so an edit of a docstring, a comment or the layout
makes nothing stale. Plug-ins are imported by name at run time, so callers name them as roots.
"""

import ast
import hashlib
import re
import subprocess
import threading
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from cmcore.errors import DataError

PACKAGES = ("cmcore", "stages")
ROOT = Path(__file__).resolve().parent.parent
UNKNOWN = "unknown"
# Where and how a computation runs, what it prints and where it is tracked: none of it changes a result.
LEFT_OUT = frozenset({
    "cmcore.closure",
    "cmcore.edge.mlflow_search",
    "cmcore.edge.mlflow_tracker",
    "cmcore.edge.mlflow_writer",
    "cmcore.edge.ray_each",
    "cmcore.edge.ray_run",
    "cmcore.edge.ray_session",
    "cmcore.edge.ray_train",
    "cmcore.edge.settings",
    "cmcore.edge.tune_watch",
    "cmcore.pipeline.common",
    "cmcore.pipeline.progress",
    "cmcore.pipeline.process",
    "cmcore.pipeline.tidy",
    "cmcore.pipeline.track",
    "cmcore.tracking.base",
})  # fmt: skip
# Fields of syntax trees that decide nothing, or that differ between versions of Python.
_IGNORED = frozenset({"ctx", "kind", "type_comment", "type_ignores", "type_params"})
# CPython 3.11 counts the depth of trees for all threads together: a SystemError where two build one. NumPy does, too,
# to read a header; so a source is parsed once in a process, and not again for every run.
_PARSER = threading.Lock()


class Source(NamedTuple):
    """A parsed file."""

    imports: frozenset[str]  # dotted names of the project's modules that it imports anywhere, also inside functions
    digest: str


@cache
def revision(root: Path = ROOT) -> str:
    """The git commit of the code, with `-dirty` where sources differ from it; `unknown` where it is not under git."""
    command = ["git", "-C", str(root), "status", "--porcelain=v2", "--branch", "--", *PACKAGES]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError:  # there is no git
        return UNKNOWN
    lines = done.stdout.splitlines()
    commit = next((line.split()[-1] for line in lines if line.startswith("# branch.oid ")), "")
    if done.returncode or not (root / ".git").exists() or not re.fullmatch("[0-9a-f]{40,}", commit):
        return UNKNOWN
    return commit + ("-dirty" if any(not line.startswith("#") for line in lines) else "")


def module_file(module: str, root: Path = ROOT) -> Path | None:
    """The file of a dotted module of this project, or None if there is none."""
    base = root.joinpath(*module.split("."))
    for candidate in (base.with_suffix(".py"), base / "__init__.py"):
        if candidate.is_file():
            return candidate
    return None


def read_source(file: Path) -> Source:
    """Parse a file, once for each of its contents."""
    return _parse(file.read_bytes(), str(file))


@cache
def _parse(source: bytes, name: str) -> Source:
    try:
        with _PARSER:
            tree = ast.parse(source, filename=name)
    except SyntaxError as error:
        raise DataError(f"{name}:{error.lineno}: expected Python, got an error of syntax: {error.msg}") from error
    text = "".join(canonical(tree))
    return Source(_imports(tree, name), hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest())


def _imports(tree: ast.Module, name: str) -> frozenset[str]:
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            if node.level or not node.module:
                raise ValueError(f"{name}:{node.lineno}: expected absolute imports only, got a relative one")
            # `from package import name` may name a submodule or an attribute; a name that is no file is dropped later.
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return frozenset(module for module in found if module.split(".")[0] in PACKAGES)


def canonical(node: Any) -> Iterator[str]:
    """A syntax tree as text, the same in every supported version of Python, without docstrings and positions.

    `ast.dump` and `ast.unparse` differ between versions. Fields without a value are left out, as new versions add such
    fields, and so are statements that are only a string.
    """
    if isinstance(node, ast.AST):
        yield f"{type(node).__name__}("
        for name, value in ast.iter_fields(node):
            kept = [one for one in value if not _is_docstring(one)] if isinstance(value, list) else value
            if name not in _IGNORED and kept is not None and kept != []:
                yield f"{name}="
                yield from canonical(kept)
        yield ")"
    elif isinstance(node, list):
        yield "["
        for one in node:
            yield from canonical(one)
        yield "]"
    else:
        yield f"{node!r},"


def _is_docstring(node: Any) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


def import_closure(roots: Iterable[str], root: Path = ROOT) -> set[Path]:
    """Files, relative to the project, that the root modules need: themselves, package initialisers, data files.

    A data file beside a module that has the module's name (`page.html` beside `page.py`) belongs to the module. Modules
    that decide no result, and what only they import, are left out. A ValueError says that a root is no module of the
    project.
    """
    pending, seen, closure = list(roots), set(LEFT_OUT), set[Path]()
    for name in pending:
        if module_file(name, root) is None:
            raise ValueError(f"import closure: expected a module of {', '.join(PACKAGES)}, got {name!r}")
    while pending:
        name = pending.pop()
        file = module_file(name, root)
        if name in seen or file is None:
            continue
        seen.add(name)
        closure |= {path.relative_to(root) for path in (file, *_data_files(file))}
        parents = name.split(".")[:-1]
        pending += [".".join(parents[:depth]) for depth in range(1, len(parents) + 1)]
        pending += read_source(file).imports
    return closure


def _data_files(module: Path) -> list[Path]:
    return [path for path in module.parent.glob(f"{module.stem}.*") if path.suffix not in (".py", ".pyc")]


def source_digest(roots: Iterable[str], root: Path = ROOT) -> str:
    """Hex digest of an import closure: names of files, syntax trees of modules, bytes of data files."""
    state = hashlib.sha256()
    for path in sorted(import_closure(roots, root)):
        file = root / path
        found = read_source(file).digest if path.suffix == ".py" else hashlib.sha256(file.read_bytes()).hexdigest()
        state.update(f"{path.as_posix()}\0{found}\0".encode())
    return state.hexdigest()[:16]
