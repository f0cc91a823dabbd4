"""Opening an MLflow store so that any number of processes may do it at once.

A fresh sqlite store fails in every process that opens it at the same moment, and `set_experiment` sends runs astray: so
the database, the experiment and the run are made under one file lock, and found again by name or by tag afterwards.
"""

import fcntl
import hashlib
import logging
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from cmcore.edge.settings import TrackingConfig

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Experiment, Run

logger = logging.getLogger(__name__)

FOLDER = Path(".tracking")
# MLflow's own defaults let one call wait for four minutes; telemetry would write to the user's home.
ENVIRONMENT = {
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "5",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_ARTIFACT_UPLOAD_DOWNLOAD_TIMEOUT": "30",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
}


def store_uri(config: TrackingConfig, root: Path) -> str:
    """Where runs are kept: MLFLOW_TRACKING_URI, else `tracking.uri`, else a database below `root`."""
    own = f"sqlite:///{(root / FOLDER / 'mlflow.db').resolve()}"
    return os.environ.get("MLFLOW_TRACKING_URI") or config.uri or own


@contextmanager
def _lock(uri: str) -> Iterator[None]:
    """One process of this machine at a time; the kernel lets go of the lock when its holder dies."""
    if uri.startswith("sqlite:///"):
        path = Path(uri.removeprefix("sqlite:///")).with_suffix(".lock")
    else:
        digest = hashlib.sha256(uri.encode()).hexdigest()[:16]
        path = Path(tempfile.gettempdir()) / f"mlflow-{os.getuid()}-{digest}.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def open_run(
    uri: str, experiment: str, name: str, tags: Mapping[str, str], *, running: bool = True
) -> tuple["MlflowClient", "Run", bool]:
    """The run with these tags' `run` and `fingerprint`, made if there is none.

    Args:
        uri: of the store.
        experiment: its name.
        name: of the run, should it be made.
        tags: laid over those that the run has.
        running: whether a run that had ended runs again; else its times stay as they are.

    Returns:
        A client, the run, and whether the run was there before.
    """
    for key, value in ENVIRONMENT.items():
        os.environ.setdefault(key, value)
    from mlflow import MlflowClient

    # After the import, which sets up loggers of its own.
    for chatty in ("alembic", "mlflow"):
        logging.getLogger(chatty).setLevel(logging.WARNING)

    with _lock(uri):
        client = MlflowClient(tracking_uri=uri)
        group = _experiment(client, uri, experiment)
        wanted = " and ".join(f"tags.{key} = '{tags[key]}'" for key in ("fingerprint", "run"))
        found = client.search_runs([group.experiment_id], wanted, max_results=1, order_by=["attributes.start_time ASC"])
        if not found:
            return client, client.create_run(group.experiment_id, tags=dict(tags), run_name=name), False
        run = found[0]
        for key, value in tags.items():
            if run.data.tags.get(key) != value:
                client.set_tag(run.info.run_id, key, value)
        if running:
            client.update_run(run.info.run_id, status="RUNNING")
        return client, run, True


def _experiment(client: "MlflowClient", uri: str, name: str) -> "Experiment":
    own = Path(uri.removeprefix("sqlite:///")).parent / "artifacts" if uri.startswith("sqlite:///") else None
    found = client.get_experiment_by_name(name)
    if found is None:
        location = own.as_uri() if own else None
        return client.get_experiment(client.create_experiment(name, artifact_location=location))
    if found.lifecycle_stage == "deleted":
        client.restore_experiment(found.experiment_id)
    if own and found.artifact_location != own.as_uri():
        _warn_of_move(own.parent, found.artifact_location)
    return found


@cache
def _warn_of_move(folder: Path, artifacts: str | None) -> None:
    """Once, and not for every run."""
    logger.warning("%s was moved, artifacts go to %s; delete it to start anew", folder, artifacts)
