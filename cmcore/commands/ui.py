"""`cmlab ui`: MLflow in the browser, at the comparison of the newest reproduction."""

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.request
import webbrowser
from pathlib import Path

from cmcore.commands.programs import environment
from cmcore.edge.mlflow_database import prepare_database
from cmcore.edge.mlflow_views import links
from cmcore.edge.mlflow_writer import ENVIRONMENT, FOLDER, SQLITE, Store, TrackingError
from cmcore.edge.ray_family import mortal
from cmcore.pipeline.common import load

HOST = "127.0.0.1"  # MLflow asks for no password: whoever reaches it can read and delete
WAIT = 120.0  # seconds for the server to come
GRACE = 4.0  # seconds for it to end


def serve(root: Path, port: int) -> None:
    """Run MLflow's server of the project's own database until Ctrl-C, and open its pages on a desktop.

    Of runs that are kept on a server elsewhere the pages are there already, and only their links are said.

    Raises:
        TrackingError: the database, or the server, cannot be read; or the server ended by itself.
    """
    setup = load(root)
    store = Store.of(setup.tracking, root, setup.project.workload)
    os.environ.update({key: value for key, value in ENVIRONMENT.items() if key not in os.environ})
    if not store.uri.startswith("sqlite:"):
        _show(list(_told(store, store.uri.rstrip("/"))))
        return
    folder, address = root / FOLDER, f"http://{HOST}:{port}"
    folder.mkdir(exist_ok=True)
    prepare_database(Path(store.uri.removeprefix(SQLITE)))
    pages = _told(store, address)
    print("Ctrl-C ends the server", flush=True)
    variables = environment(**ENVIRONMENT, MLFLOW_SERVER_ENABLE_JOB_EXECUTION="false")
    # A group of its own, as MLflow's server does not pass on every signal to the processes that it starts.
    server = subprocess.Popen(command(store, folder, port), env=variables, start_new_session=True)
    if on_desktop():
        threading.Thread(target=_show_once_there, args=(address, pages), daemon=True).start()
    with mortal([-server.pid]):
        try:
            server.wait()
        except KeyboardInterrupt:
            return
        finally:
            _end(server)
    raise TrackingError(f"MLflow's server at {address} ended; where the port is taken, --port chooses another")


def command(store: Store, folder: Path, port: int) -> list[str]:
    """MLflow's server of a store."""
    return [
        *(sys.executable, "-m", "mlflow", "server", "--host", HOST, "--port", str(port), "--workers", "1"),
        *("--backend-store-uri", store.uri, "--artifacts-destination", str(folder / "artifacts")),
    ]


def _end(server: "subprocess.Popen[bytes]") -> None:
    """End a process and its group, in good order if that does not take long."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        end = time.monotonic() + GRACE
        with contextlib.suppress(ProcessLookupError):  # nobody is left
            os.killpg(server.pid, number)
            while time.monotonic() < end:
                server.poll()
                os.killpg(server.pid, 0)
                time.sleep(0.05)


def _told(store: Store, address: str) -> list[str]:
    found = links(store, address)
    for name, link in found.items():
        print(f"MLflow, {name}: {link}", flush=True)
    return list(found.values())


def on_desktop() -> bool:
    """Whether somebody sits before a screen of this machine."""
    screen = sys.platform == "darwin" or os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
    return bool(sys.stdout.isatty() and screen and not os.environ.get("SSH_CONNECTION"))


def _show(pages: list[str]) -> None:
    if on_desktop():
        webbrowser.open(pages[0])


def _show_once_there(address: str, pages: list[str]) -> None:
    end = time.monotonic() + WAIT
    while time.monotonic() < end:
        try:
            with urllib.request.urlopen(f"{address}/health", timeout=5):
                return _show(pages)
        except OSError:
            time.sleep(0.5)
    return None
