"""Which source files decide the results of each stage, from the imports themselves."""

import ast
from pathlib import Path

from cmcore import plugins
from cmcore.closure import ROOT, imported_modules, module_file

# How a stage runs, what it prints and where it is tracked: none of it changes a result.
HOW = {
    "cmcore.pipeline.common",
    "cmcore.pipeline.progress",
    "cmcore.pipeline.tidy",
    "cmcore.pipeline.track",
    "cmcore.pipeline.ready",
    "cmcore.closure",
    "cmcore.edge.mlflow_search",
    "cmcore.edge.mlflow_writer",
    "cmcore.edge.mlflow_tracker",
    "cmcore.edge.ray_each",
    "cmcore.edge.ray_run",
    "cmcore.edge.ray_session",
    "cmcore.edge.ray_train",
    "cmcore.edge.tune_watch",
    "cmcore.edge.settings",
    "cmcore.tracking",
    "cmcore.tracking.base",
}
PLUGINS = {
    "train": ("cmcore.methods", "cmcore.nets"),
    "evaluate": ("cmcore.methods", "cmcore.nets"),
    "tune": ("cmcore.methods", "cmcore.nets"),
}


def plugin_modules(stage: str) -> list[str]:
    return [f"{package}.{name}" for package in PLUGINS.get(stage, ()) for name in plugins.available(package)]


def code_of(stage: str) -> set[str]:
    """The files of a stage, without the plug-ins themselves: dvc.yaml names those by the run's own parameters."""
    pending, files, seen = [f"stages.{stage}", *plugin_modules(stage)], set(), set()
    while pending:
        module = pending.pop()
        file = module_file(module)
        if module in seen or module in HOW or file is None:
            continue
        seen.add(module)
        parents = module.split(".")[:-1]
        pending += [*imported_modules(file), *(".".join(parents[:n]) for n in range(1, len(parents) + 1))]
        if not (module in plugin_modules(stage) or only_a_docstring(file)):
            files.add(file.relative_to(ROOT).as_posix())
    return files


def only_a_docstring(file: Path) -> bool:
    body = ast.parse(file.read_text(encoding="utf-8")).body
    return all(isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) for node in body)
