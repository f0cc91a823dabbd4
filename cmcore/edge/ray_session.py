"""A connection to Ray: to an existing cluster, or to a local Ray that is started here.

Ray listens on every network interface, even on a single machine, and anyone who reaches it can run code. So a local Ray
requires a random token that only its child processes know.
"""

import contextlib
import logging
import os
import secrets
import shutil
import signal
import socket
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cmcore.edge.ray_family import children, end_family, family
from cmcore.edge.settings import ComputeConfig

ROOT = Path(__file__).resolve().parent.parent.parent
PACKAGES = ("cmcore", "stages")
# Address of a local Ray that all stages of a pipeline run share: starting one takes seconds.
SHARED = "CMLAB_SHARED_RAY"
NO_START = "Ray did not start on this machine"
OBJECT_STORE = 150 * 2**20  # bytes; only progress, paths and small results pass through it
ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    # A thread that asks Ray for something after its end would start another one, in a process that is about to end.
    "RAY_ENABLE_AUTO_CONNECT": "0",
}


class ComputeError(RuntimeError):
    """The place of the computation failed or does not suffice; the message is one line."""


class WorkerDiedError(ComputeError):
    """A process that computed was killed, most often for want of memory."""


@dataclass(frozen=True)
class Session:
    """A connection."""

    address: str
    own: bool  # a local Ray, not a cluster

    @property
    def shared_folder(self) -> Path | None:
        """The folder that every node must see: the project on a cluster, none on one machine."""
        return None if self.own else ROOT


def require_folder(folder: Path | None) -> None:
    """Check on a worker that its node sees the folder.

    Raises:
        ComputeError: it does not.
    """
    if folder is not None and not folder.is_dir():
        raise ComputeError(f"a node of the cluster does not see {folder}: the project must lie on shared storage")


_current: list[Session] = []  # Ray allows one connection in a process


@contextmanager
def connection(compute: ComputeConfig, jobs: int = 1) -> Iterator[Session]:
    """A Ray connection for the block: RAY_ADDRESS, else `compute.address`, else a local Ray for `jobs` jobs.

    A block inside another, also in another thread, shares the outer connection.

    Raises:
        ComputeError: no cluster answers at the address.
    """
    if _current:
        yield _current[0]
        return
    with _new_connection(compute, jobs) as session:
        _current.append(session)
        try:
            yield session
        finally:
            _current.remove(session)


@contextmanager
def _new_connection(compute: ComputeConfig, jobs: int) -> Iterator[Session]:
    address = os.environ.get("RAY_ADDRESS") or compute.address
    shared = os.environ.get(SHARED, "")
    if address and address != "local":
        with _connected(address, {"py_modules": [str(ROOT / name) for name in PACKAGES], "excludes": ["__pycache__"]}):
            yield Session(address, own=False)
    elif shared and _answers(shared):
        with _connected(shared, {}):
            yield Session(shared, own=True)
    else:
        with own_ray(compute, jobs) as address:
            yield Session(address, own=True)


@contextmanager
def own_ray(compute: ComputeConfig, jobs: int = 1) -> Iterator[str]:
    """Start a local Ray and stop it after the block; its processes die with this one in any case.

    It runs as many jobs at a time as the cores allow, and at least `jobs`.

    Raises:
        ComputeError: it did not start within half a minute.
    """
    # Ray reads the token once in a process, so a second Ray in the same process must have the same one.
    token = os.environ.get("RAY_AUTH_TOKEN") or secrets.token_hex(32)
    os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token, **ENVIRONMENT}
    import ray

    # Unix sockets end at 107 bytes and Ray adds 60, so a long TMPDIR cannot be used.
    place = tempfile.gettempdir()
    place = Path(place if len(place) < 30 else "/tmp")
    _remove_left_over(place)
    folder = tempfile.mkdtemp(prefix=f"cmray-{os.getpid()}-", dir=place)
    cpus = max(compute.threads * jobs, os.cpu_count() or 1)
    before = children()
    try:
        try:
            with _module_path(), _own_signals():
                ray.init(
                    address="local", num_cpus=cpus, include_dashboard=False, object_store_memory=OBJECT_STORE,
                    _temp_dir=folder, log_to_driver=False, logging_level=logging.ERROR,
                )  # fmt: skip
        except Exception as error:  # Ray has no class of its own for it
            reason = " ".join(str(error).split())
            raise ComputeError(f"{NO_START}: {reason}; start again when the machine has less to do") from error
        address = ray.get_runtime_context().gcs_address
        with family(before, address):
            yield address
    finally:
        ray.shutdown()
        end_family()
        shutil.rmtree(folder, ignore_errors=True)


def _remove_left_over(place: Path) -> None:
    """Remove the folders of processes that were killed."""
    for folder in place.glob("cmray-*-*"):
        with contextlib.suppress(FileNotFoundError):  # of the same idea, another process was faster
            if not Path("/proc", folder.name.split("-")[1]).exists() and folder.stat().st_uid == os.getuid():
                shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _own_signals() -> Iterator[None]:
    """Keep this process's way to end on a signal, in place of which Ray sets its own."""
    main = threading.current_thread() is threading.main_thread()
    kept = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in kept.items():
            if main and handler is not None:
                signal.signal(number, handler)


@contextmanager
def _module_path() -> Iterator[None]:
    """Give the processes that are started in the block the module path of this one."""
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join(dict.fromkeys([str(ROOT), *filter(None, sys.path)]))
    try:
        yield
    finally:
        if before is None:
            del os.environ["PYTHONPATH"]
        else:
            os.environ["PYTHONPATH"] = before


@contextmanager
def _connected(address: str, runtime_env: dict[str, Any]) -> Iterator[None]:
    """Connect to a running cluster."""
    where = f"Ray at {address} (RAY_ADDRESS or compute.address)"
    if address.startswith("ray://"):
        raise ComputeError(f"{where}: expected host:port of the head node, got the address of a Ray client server")
    if address != "auto" and not _answers(address):
        raise ComputeError(f"{where} does not answer; is the head node up, and is this the port of `ray start --port`?")
    os.environ |= ENVIRONMENT
    import ray

    try:
        with _own_signals():
            ray.init(address=address, runtime_env=runtime_env, log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, RuntimeError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ComputeError(
            f"{where} cannot be used: {reason} (a cluster needs one Ray version, one token, and the same RAY_AUTH_MODE)"
        ) from error
    try:
        yield
    finally:
        ray.shutdown()


def _answers(address: str, seconds: float = 3.0) -> bool:
    """Whether a server listens at the address; Ray itself would try for twenty seconds."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=seconds).close()
    except (OSError, ValueError):
        return False
    return True
