"""Components found by name: a module of a package, imported only when it is asked for."""

import difflib
import importlib
import pkgutil
from types import ModuleType


def available(package: str) -> list[str]:
    """Names of a package's plug-ins: its modules, but not its packages and what starts with `_` or `base`."""
    path = importlib.import_module(package).__path__
    hidden = ("_", "base")
    return sorted(m.name for m in pkgutil.iter_modules(path) if not (m.ispkg or m.name.startswith(hidden)))


def load(package: str, name: str) -> ModuleType:
    """Import `package.name`. Where there is no such plug-in, a ValueError lists those there are."""
    names = available(package)
    if name not in names:
        close = difflib.get_close_matches(name, names, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise ValueError(f"expected one of {', '.join(names)}, got {name!r}{hint}")
    return importlib.import_module(f"{package}.{name}")
