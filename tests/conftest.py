"""What every test may rely on: one torch thread, no TF32, no telemetry, short temporary paths for Ray."""

import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

# The same examples on every machine, and no verdict from its clock.
settings.register_profile("repeatable", derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("repeatable")
os.environ |= {
    "RAY_USAGE_STATS_ENABLED": "0",
    # Ray reads these when it is imported, so they are set before any test module is.
    "RAY_AUTH_MODE": "token",
    "RAY_AUTH_TOKEN": "7" * 64,
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    "DVC_NO_ANALYTICS": "1",
    "MPLBACKEND": "Agg",
}
for variable in ("RAY_ADDRESS", "MLFLOW_TRACKING_URI", "MLFLOW_RUN_ID", "MLFLOW_EXPERIMENT_ID"):
    os.environ.pop(variable, None)


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    import torch

    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _full_mantissa() -> None:
    """Matrix products in float32 proper, which PyTorch's own settings allow to be in TF32 on a GPU."""
    from cmcore.train.precision import choose_matrix_units

    choose_matrix_units("fp32")


@pytest.fixture(autouse=True)
def _own_end() -> Iterator[None]:
    """The signals and watchers of this process as they were: a command called in it sets them for the rest of its life.

    Left in place, they end the process of all later tests as soon as one of those kills a Ray.
    """
    from cmcore.edge import ray_family
    from cmcore.pipeline import signals

    kept = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)}
    yield
    for number, handler in kept.items():
        signal.signal(number, handler)
    for calls in (ray_family.on_loss, ray_family.on_leave, signals.received):
        calls.clear()


@pytest.fixture
def short_tmp() -> Iterator[Path]:
    """A temporary folder with a short path: Unix sockets end at 107 bytes, and pytest's own paths are longer."""
    folder = Path(tempfile.mkdtemp(prefix="cm", dir="/tmp" if Path("/tmp").is_dir() else None))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)
