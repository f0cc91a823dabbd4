"""The life of a stage process: one-line errors, a clean end on every signal, and no life after DVC's."""

import contextlib
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import NoReturn

import psutil

from cmcore.config import ConfigError
from cmcore.pipeline.turn import turn

DRIVER = "CMLAB_DRIVER"  # names the process that runs DVC as a library
GRACE = 15.0  # seconds for a clean end, once DVC is gone


def expected() -> tuple[type[Exception], ...]:
    """The errors whose message is one sentence. Imported only once there is an error, as their modules import much."""
    from cmcore.edge.mlflow_writer import TrackingError
    from cmcore.edge.ray_session import ComputeError
    from cmcore.errors import DataError
    from cmcore.report.readers import ReportError
    from cmcore.train.checkpoint import CheckpointError
    from cmcore.train.gate import NonFiniteError

    return ConfigError, DataError, CheckpointError, NonFiniteError, ComputeError, ReportError, TrackingError


def guarded(name: str, main: Callable[[], None]) -> NoReturn:
    """Run a stage and exit: 0, 1 for an error, 2 for a wrong parameter, 128 + n for signal n."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    signal.signal(signal.SIGTERM, _stop)
    if "DVC_STAGE" in os.environ:
        threading.Thread(target=_end_with, args=(caller(),), daemon=True).start()
    try:
        with turn(Path.cwd(), f"stage {name}", wait=True) if "DVC_STAGE" in os.environ else contextlib.nullcontext():
            main()
    except ConfigError as error:
        print(f"{name}: {error}", file=sys.stderr)
        sys.exit(2)
    except Exception as error:
        if not isinstance(error, expected()):
            raise
        print(f"{name}: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        print(f"{name}: stopped; start again, and it continues from its last checkpoint", file=sys.stderr)
        sys.exit(128 + signal.SIGINT)
    sys.exit(0)


def _stop(number: int, frame: FrameType | None) -> NoReturn:
    del frame
    sys.exit(128 + number)


def caller() -> psutil.Process | None:
    """The process whose death ends the stage: DVC, or the driver, in which DVC is a library.

    There is none where it was killed while this process was starting.
    """
    driver = os.environ.get(DRIVER)
    for parent in psutil.Process().parents()[:4]:  # there may be a shell between them
        if str(parent.pid) == driver or any(os.path.basename(part) == "dvc" for part in parent.cmdline()):
            return parent
    return None


def _end_with(process: psutil.Process | None) -> None:
    """End this stage when its caller has ended. A DVC that is killed does not end its stage itself."""
    while process is not None and process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
        time.sleep(0.5)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(GRACE)
    os._exit(1)
