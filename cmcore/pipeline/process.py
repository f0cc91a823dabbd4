"""The life of a stage process: one-line errors, a clean end on every signal, and no life after DVC's."""

import contextlib
import errno
import logging
import os
import re
import signal
import sqlite3
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import psutil

from cmcore.atomic import write_atomic
from cmcore.closure import PACKAGES
from cmcore.config import ConfigError
from cmcore.edge.ray_family import leave
from cmcore.errors import reason
from cmcore.pipeline.home import give_home
from cmcore.pipeline.signals import SIGNALLED, received, status, stop_on_signals
from cmcore.pipeline.turn import turn

DRIVER = "CMLAB_DRIVER"  # names the process that runs DVC as a library
GRACE = 8.0  # seconds for a clean end, once DVC is gone
CONTINUES = "start again, and it continues from its last checkpoint"
TRACEBACK = Path(".work/traceback.txt")  # of the last error that nobody expected
FULL = (errno.ENOSPC, errno.EDQUOT)
SAYS_FULL = re.compile(r"No space left|disk is full|quota exceeded", re.IGNORECASE)  # where a library has wrapped it


def expected() -> tuple[type[Exception], ...]:
    """The errors whose message is one sentence. Imported only once there is an error, as their modules import much."""
    from cmcore.edge.mlflow_writer import TrackingError
    from cmcore.edge.ray_session import ComputeError
    from cmcore.errors import DataError
    from cmcore.report.readers import ReportError
    from cmcore.train.checkpoint import CheckpointError
    from cmcore.train.gate import NonFiniteError

    return ConfigError, DataError, CheckpointError, NonFiniteError, ComputeError, ReportError, TrackingError


def tell(line: str) -> None:
    """Say something beside the progress."""
    print(line, file=sys.stderr, flush=True)


def told(error: Exception, root: Path) -> str:
    """An error in one line. The traceback of one that is not expected goes into a file, which the line names."""
    if isinstance(error, expected()):
        return " ".join(str(error).split())
    if isinstance(error, (OSError, sqlite3.Error)):
        return f"{reason(error, 300)}{advice(error)}"
    if isinstance(error, ModuleNotFoundError) and (error.name or "").partition(".")[0] not in PACKAGES:
        return f"{error.name} is not installed for {sys.executable}; use make, or activate the environment first"
    said, text = (
        f"{type(error).__name__}: {reason(error, 300)}{advice(error)}",
        "".join(traceback.format_exception(error)),
    )
    for path, shown in ((root / TRACEBACK, TRACEBACK), (elsewhere := _temporary(), elsewhere)):
        with contextlib.suppress(OSError):
            write_atomic(path, text.encode())
            return f"{said} (traceback: {shown})"
    return said


def _temporary() -> Path:
    """Where a traceback goes if the project cannot take it: its disk is full, or not to be written to."""
    return Path(tempfile.gettempdir(), f"cmlab-{os.getuid()}", TRACEBACK.name)


def advice(error: Exception) -> str:
    """The end of a line about an error that a full disk has caused, also through others; of others nothing."""
    full = any(getattr(one, "errno", 0) in FULL or SAYS_FULL.search(str(one)) for one in causes(error))
    return "; free some space, and start again" if full else ""


def causes(error: BaseException) -> list[BaseException]:
    """An error, the one that it was raised from, and so on to the first of all."""
    found = [error]
    while (cause := found[-1].__cause__) is not None and cause not in found:
        found.append(cause)
    return found


def guarded(name: str, main: Callable[[], None]) -> NoReturn:
    """Run a stage and exit: 0, 1 for an error, 2 for a wrong parameter, 128 + n for signal n."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    give_home()
    stop_on_signals(lambda: f"{name}: stopped; {CONTINUES}")
    if "DVC_STAGE" in os.environ:
        threading.Thread(target=_end_with, args=(caller(),), daemon=True).start()
    message, code = "", 0
    try:
        with turn(Path.cwd(), f"stage {name}", wait=True) if "DVC_STAGE" in os.environ else contextlib.nullcontext():
            main()
    except ConfigError as error:
        message, code = str(error), 2
    except Exception as error:
        message, code = "" if received else told(error, Path.cwd()), 1
    except KeyboardInterrupt:
        code = SIGNALLED + signal.SIGINT
    except SystemExit as stopped:
        code = stopped.code if isinstance(stopped.code, int) and not received else 1
    if (code := status(code)) > SIGNALLED:
        leave(code, f"{name}: stopped; {CONTINUES}")
    if message:
        print(f"{name}: {message}", file=sys.stderr, flush=True)
    sys.exit(code)


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
