"""Words that the shell completes. A damaged file completes nothing: the command itself says what is wrong with it."""

from cmcore.commands.place import CommandError, project_root, workload_files
from cmcore.config import PARAMS, ConfigError, flatten, load_yaml


def workloads(incomplete: str) -> list[str]:
    """Names of workload files."""
    try:
        return [name for name in workload_files(project_root()) if name.startswith(incomplete)]
    except CommandError:
        return []


def searches(incomplete: str) -> list[str]:
    """Names of the searches of params.yaml."""
    return [name for name in _section("tune") if name.startswith(incomplete)]


def runs(incomplete: str) -> list[str]:
    """Names of the runs of params.yaml."""
    return [name for name in _section("runs") if name.startswith(incomplete)]


def parameters(incomplete: str) -> list[str]:
    """Dotted keys of params.yaml, level by level: `runs.`, `runs.ect.`, ..., `runs.ect.options.q=`."""
    depth, found = incomplete.count(".") + 1, dict[str, None]()
    for key in flatten(_parameters()):
        parts = key.split(".")
        found[".".join(parts[:depth]) + ("." if len(parts) > depth else "=")] = None
    return [key for key in found if key.startswith(incomplete)]


def _section(name: str) -> list[str]:
    section = _parameters().get(name)
    return list(section) if isinstance(section, dict) else []


def _parameters() -> dict[str, object]:
    try:
        return load_yaml(project_root() / PARAMS)
    except (CommandError, ConfigError):
        return {}
