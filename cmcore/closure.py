"""Which source files a module needs: the static import closure inside the project, and its digest.

It tells a run's fingerprint, and the test of dvc.yaml, which code a result depends on. Plug-ins are imported by name at
run time, so callers name them as roots.
"""

import ast
import hashlib
import threading
from collections.abc import Iterable
from functools import cache
from pathlib import Path

PACKAGES = ("cmcore", "stages")
ROOT = Path(__file__).resolve().parent.parent
# CPython 3.11 counts the depth of trees for all threads together: a SystemError where two build one. NumPy does, too,
# to read a header; so a source is parsed once in a process, and not again for every run.
_PARSER = threading.Lock()


def module_file(module: str, root: Path = ROOT) -> Path | None:
    """The file of a dotted module of this project, or None if there is none."""
    base = root.joinpath(*module.split("."))
    for candidate in (base.with_suffix(".py"), base / "__init__.py"):
        if candidate.is_file():
            return candidate
    return None


def imported_modules(file: Path) -> set[str]:
    """Dotted names of the project's modules that a file imports anywhere, also inside functions."""
    return set(_imports(file.read_bytes(), str(file)))


@cache
def _imports(source: bytes, name: str) -> frozenset[str]:
    found: set[str] = set()
    with _PARSER:
        tree = ast.parse(source, filename=name)
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            if node.level or not node.module:
                raise ValueError(f"{name}:{node.lineno}: expected absolute imports only, got a relative one")
            # `from package import name` may name a submodule or an attribute; a name that is no file is dropped later.
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return frozenset(module for module in found if module.split(".")[0] in PACKAGES)


def import_closure(roots: Iterable[str], root: Path = ROOT) -> set[Path]:
    """Files, relative to the project, that the root modules need, themselves and package initialisers included.

    A ValueError says that a root is no module of the project.
    """
    pending, closure = list(roots), set[Path]()
    for name in pending:
        if module_file(name, root) is None:
            raise ValueError(f"import closure: expected a module of {', '.join(PACKAGES)}, got {name!r}")
    while pending:
        name = pending.pop()
        file = module_file(name, root)
        if file is None or file.relative_to(root) in closure:
            continue
        closure.add(file.relative_to(root))
        parents = name.split(".")[:-1]
        pending += [".".join(parents[:depth]) for depth in range(1, len(parents) + 1)]
        pending += imported_modules(file)
    return closure


def source_digest(roots: Iterable[str], root: Path = ROOT) -> str:
    """Hex digest of the names and contents of an import closure."""
    state = hashlib.sha256()
    for file in sorted(import_closure(roots, root)):
        state.update(f"{file.as_posix()}\0".encode() + (root / file).read_bytes() + b"\0")
    return state.hexdigest()[:16]
