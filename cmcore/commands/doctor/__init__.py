"""`cmlab doctor`: whether machine, packages, git, DVC, Ray, MLflow and parameters are in order. It changes nothing."""

from collections.abc import Callable, Iterator
from pathlib import Path

from cmcore.commands.doctor.finding import FAIL, WARN, Finding
from cmcore.commands.doctor.packages import INSTALL, check_code, check_packages, check_python
from cmcore.config import ConfigError

REMEDY = "correct it, or `cmlab use WORKLOAD` starts from a file of workloads/"


def findings(root: Path) -> Iterator[Finding]:
    """Everything, in order: what needs least first, so that a package that is missing is said before it is missed."""
    yield check_python()
    yield check_code(root)
    packages = _checked("packages", lambda: check_packages(root))
    yield packages
    try:
        yield from _with_packages(root)
    except ModuleNotFoundError as error:
        if packages.state != FAIL:  # else it was said
            yield Finding("packages", FAIL, str(error), INSTALL)


def _with_packages(root: Path) -> Iterator[Finding]:
    from cmcore.commands.doctor import machine, parameters, storage
    from cmcore.edge.settings import ComputeConfig, TrackingConfig
    from cmcore.pipeline.common import PARAMS, load

    setup, wrong = None, ""
    try:
        setup = load(root)
    except ConfigError as error:
        wrong = str(error)
    compute, tracking = (setup.compute, setup.tracking) if setup else (ComputeConfig(), TrackingConfig())
    workload = setup.project.workload if setup else ""
    yield _checked("machine", lambda: machine.check_machine(compute))
    yield _checked("disk", lambda: machine.check_disk(root))
    yield _checked("torch", lambda: machine.check_torch(compute))
    yield _checked("git", lambda: storage.check_git(root))
    yield _checked("dvc", lambda: storage.check_dvc(root))
    yield _checked("ray", lambda: storage.check_ray(compute))
    yield _checked("mlflow", lambda: storage.check_mlflow(tracking, root, workload))
    if setup is None:
        yield Finding("parameters", FAIL, f"{PARAMS}: {wrong}", REMEDY)
        return
    yield _checked("parameters", lambda: parameters.check_parameters(setup, root))
    yield _checked("files", lambda: parameters.check_files(setup, root))
    yield _checked("memory", lambda: parameters.check_memory(setup))


def _checked(part: str, check: Callable[[], Finding]) -> Finding:
    """A check that cannot be made is a finding, too: a file may not be readable, a network not be built."""
    try:
        return check()
    except ModuleNotFoundError:
        raise
    except Exception as error:
        return Finding(part, WARN, f"could not be checked ({type(error).__name__}: {error})", "look into it by hand")


def examine(root: Path) -> tuple[list[str], bool]:
    """A line for each finding, and whether none of them is FAIL."""
    found = list(findings(root))
    return [*map(str, found)], all(one.state != FAIL for one in found)
