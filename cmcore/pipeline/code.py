"""The code of every stage and run as a small file: DVC depends on these files instead of on lists of sources.

Beside the code they hold the digests of files that parameters name by their paths, which DVC does not see either.

It imports no torch, as DVC runs it before everything else whenever a source has changed.
"""

import importlib.metadata
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cmcore import plugins
from cmcore.assemble.project import Sections
from cmcore.closure import source_digest
from cmcore.config import ConfigError, join
from cmcore.errors import DataError
from cmcore.pipeline.contents import Contents, digests, named_files

# Libraries whose upgrade may change the bits of a result.
LIBRARIES = {
    "prepare": ("numpy", "pillow", "torch"),
    "reference": ("numpy", "torch"),
    "train": ("numpy", "torch"),
    "evaluate": ("numpy", "torch"),
    "edit": ("numpy", "torch"),
    "tabulate": (),
    "tune": ("numpy", "torch"),
}
MEMORY = Path(".work", "contents.json")
METHODS, NETS = "cmcore.methods", "cmcore.nets"
LIBRARY_NETS = {f"{NETS}.diffusers": "diffusers"}  # networks that a library computes


def code_file(stage: str) -> str:
    """The name of the file of a stage, such as `train@ect`."""
    return f"{stage.replace('@', '-')}.json"


def describe_code(
    roots: Mapping[str, list[str]], files: Mapping[str, Mapping[str, Path]], folder: Path
) -> dict[str, dict[str, Any]]:
    """What decides the results of stages beside their dependencies and parameters, by stage.

    Args:
        roots: the root modules of each stage, of `code_roots`.
        files: those that each stage reads, of `named_files`.
        folder: where these descriptions are written; of absent files they keep the digests that stand there.

    Returns:
        The root modules, the digest of their import closure, versions of libraries, and digests of files if any.

    Raises:
        DataError: a file cannot be read.
    """
    contents = Contents(MEMORY)
    described: dict[str, dict[str, Any]] = {}
    for stage, modules in roots.items():
        foreign = [LIBRARY_NETS[module] for module in modules if module in LIBRARY_NETS]
        described[stage] = {
            "roots": modules,
            "digest": source_digest(modules),
            "libraries": {name: _version(name) for name in (*LIBRARIES[stage.partition("@")[0]], *foreign)},
        }
        if named := files.get(stage):
            described[stage]["files"] = digests(named, contents, _files_before(folder, stage))
    return described


def _files_before(folder: Path, stage: str) -> dict[str, Any]:
    try:
        return dict(json.loads((folder / code_file(stage)).read_bytes())["files"])
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def require_unchanged(sections: Sections, stage: str, folder: Path) -> None:
    """A DataError where files that a stage has read are not those that its description names."""
    named, before = named_files(sections).get(stage, {}), _files_before(folder, stage)
    now = digests(named, Contents(MEMORY), before)
    for key, path in named.items():
        if key in before and now[key] != before[key]:
            raise DataError(f"{key}: {path} changed while it was read; run `cmlab repro` again")


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
    roots["edit"] = list(
        dict.fromkeys(["stages.edit", *(one for name in sections.runs for one in _plugins(sections, name))])
    )
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
