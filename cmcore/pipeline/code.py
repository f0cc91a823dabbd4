"""The code of every stage and run as a small file: DVC depends on these files instead of on lists of sources.

It imports no torch, as DVC runs it before everything else whenever a source has changed.
"""

import importlib.metadata
from collections.abc import Mapping
from typing import Any

from cmcore import plugins
from cmcore.assemble.project import Sections
from cmcore.closure import source_digest
from cmcore.config import ConfigError, join

# Libraries whose upgrade may change the bits of a result.
LIBRARIES = {
    "prepare": ("numpy", "pillow"),
    "reference": ("numpy", "torch"),
    "train": ("numpy", "torch"),
    "evaluate": ("numpy", "torch"),
    "tabulate": (),
    "tune": ("numpy", "torch"),
}
METHODS, NETS = "cmcore.methods", "cmcore.nets"


def code_file(stage: str) -> str:
    """The name of the file of a stage, such as `train@ect`."""
    return f"{stage.replace('@', '-')}.json"


def describe_code(roots: Mapping[str, list[str]]) -> dict[str, dict[str, Any]]:
    """The code and the libraries of stages, by stage: root modules, the digest of their import closure, and versions.

    Args:
        roots: the root modules of each stage, of `code_roots`.
    """
    return {
        stage: {
            "roots": modules,
            "digest": source_digest(modules),
            "libraries": {name: _version(name) for name in LIBRARIES[stage.partition("@")[0]]},
        }
        for stage, modules in roots.items()
    }


def code_roots(sections: Sections) -> dict[str, list[str]]:
    """The root modules of every stage (`prepare`, `train@ect`): its own, and the plug-ins that parameters name.

    `tune@<run>` is for searches over the parameters of that run.

    Raises:
        ConfigError: a run names a method or a kind of network that does not exist.
    """
    roots = {stage: [f"stages.{stage}"] for stage in ("prepare", "reference", "tabulate")}
    for name in sections.runs:
        for stage in ("train", "evaluate", "tune"):
            roots[f"{stage}@{name}"] = [f"stages.{stage}", *_plugins(sections, name)]
    return roots


def _plugins(sections: Sections, name: str) -> list[str]:
    """The method of a run, its network, and the networks of the runs whose weights it loads."""
    entry, path = sections.runs[name], join("runs", name)
    nets = [_net(sections, run) for run in (name, entry.init, entry.teacher) if run in sections.runs]
    return list(dict.fromkeys([_plugin(METHODS, entry.method, join(path, "method")), *nets]))


def _net(sections: Sections, name: str) -> str:
    kind = sections.runs[name].net.get("kind", sections.net.get("kind"))
    return _plugin(NETS, kind, join(join("runs", name), "net.kind"))


def _plugin(package: str, name: object, path: str) -> str:
    known = plugins.available(package)
    if name not in known:
        raise ConfigError(path, f"expected one of {', '.join(known)}, got {name!r}")
    return f"{package}.{name}"


def _version(library: str) -> str:
    """The version without its local part, which says for which device a library was built."""
    try:
        return importlib.metadata.version(library).partition("+")[0]
    except importlib.metadata.PackageNotFoundError:
        return "not installed"
