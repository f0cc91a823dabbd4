"""`cmlab ui`: MLflow in the browser."""

import os
import sys
from pathlib import Path

from cmcore.commands.place import CommandError
from cmcore.commands.programs import environment
from cmcore.edge.mlflow_writer import ENVIRONMENT, FOLDER, Store
from cmcore.pipeline.common import load

HOST = "127.0.0.1"  # MLflow asks for no password: whoever reaches it can read and delete


def serve(root: Path, port: int) -> None:
    """Become MLflow's server of the project's own database, which ends with Ctrl-C.

    Raises:
        CommandError: runs are kept on a server that has pages of its own.
    """
    setup = load(root)
    uri = Store.of(setup.tracking, root, setup.project.workload).uri
    if not uri.startswith("sqlite:"):
        raise CommandError(f"runs are kept at {uri} (MLFLOW_TRACKING_URI or tracking.uri): open that in a browser")
    folder = root / FOLDER
    folder.mkdir(exist_ok=True)
    print(f"MLflow: http://{HOST}:{port}   (Ctrl-C ends it)", flush=True)
    command = [
        *(sys.executable, "-m", "mlflow", "server", "--host", HOST, "--port", str(port), "--workers", "1"),
        *("--backend-store-uri", uri, "--artifacts-destination", str(folder / "artifacts")),
    ]
    os.execve(sys.executable, command, environment(**ENVIRONMENT, MLFLOW_SERVER_ENABLE_JOB_EXECUTION="false"))
