"""git, DVC's files, Ray and MLflow's database."""

import configparser
import contextlib
import fcntl
import importlib.util
import json
import os
import re
import socket
import sqlite3
import subprocess
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote, urlsplit

from cmcore.commands.doctor.finding import FAIL, OK, WARN, Finding
from cmcore.edge.settings import ComputeConfig, TrackingConfig
from cmcore.pipeline.guard import LOCK_FILE, parse_lock

DEFAULT_PORTS = {"http": 80, "https": 443}
PATIENCE = 2.0  # seconds for a server


def check_git(root: Path) -> Finding:
    """A repository with a commit, which the command `dvc` needs and results name."""
    without = "cmlab works without, results name no commit, and dvc refuses"
    try:
        command = ["git", "-C", str(root), "rev-parse", "--short", "HEAD"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return Finding("git", WARN, f"there is no git: {without}", "install it")
    if done.returncode == 0:
        return Finding("git", OK, f"at {done.stdout.strip()}")
    inside = subprocess.run(["git", "-C", str(root), "rev-parse", "--git-dir"], capture_output=True, check=False)
    if inside.returncode == 0:
        return Finding("git", WARN, "a repository without a commit", "git add . && git commit")
    if "dubious ownership" in done.stderr:
        remedy = f"git config --global --add safe.directory '{root}'"
        return Finding("git", FAIL, "the repository belongs to another user", remedy)
    remedy = "clone the project, or: git init && git add . && git commit"
    return Finding("git", WARN, f"this is no git repository: {without}", remedy)


def check_dvc(root: Path) -> Finding:
    """The lock file, DVC's own locks and its cache."""
    if not (root / ".dvc" / "config").is_file():
        return Finding("dvc", FAIL, "there is no .dvc/config", "git checkout .dvc, or: dvc init")
    try:
        stages = locked_stages(root / LOCK_FILE)
    except ValueError as error:
        remedy = "`cmlab repro` sets it aside and goes on from the last sound one"
        return Finding("dvc", FAIL, f"{LOCK_FILE} is damaged ({error})", remedy)
    try:
        if holder := lock_holder(root / ".dvc" / "tmp"):
            return Finding("dvc", WARN, f"in use by {holder}", "one command at a time can run stages")
    except ValueError as error:
        return Finding("dvc", FAIL, str(error), "delete it, while no DVC runs")
    cache = cache_folder(root)
    place = next(folder for folder in (cache, *cache.parents) if folder.exists())
    if not os.access(place, os.W_OK | os.X_OK):
        return Finding("dvc", FAIL, f"{place} cannot be written to", "change its owner or mode: it is DVC's cache")
    done = f"{stages} stages in {LOCK_FILE}" if stages else f"no {LOCK_FILE}: nothing was computed yet"
    return Finding("dvc", OK, f"{done}, cache {cache}")


def locked_stages(path: Path) -> int:
    """The number of stages in a lock file, 0 where there is none; a ValueError where it is cut or garbled."""
    try:
        return len(parse_lock(path.read_bytes())) if path.exists() else 0
    except OSError as error:
        raise ValueError(str(error)) from error


def lock_holder(tmp: Path) -> str:
    """The DVC that works here, in words, or nothing.

    Raises:
        ValueError: the list of those that read and write is damaged.
    """
    lock, users = tmp / "lock", tmp / "rwlock"
    if users.is_file() and (text := users.read_text(encoding="utf-8", errors="replace").strip()):
        try:
            entries = json.loads(text)
            writers = [entry["write"] for entry in entries.values() if entry.get("write")]
            named = [*writers, *(reader for entry in entries.values() for reader in entry.get("read", ()))]
            alive = [user for user in named if Path(f"/proc/{user['pid']}").exists() or not Path("/proc").is_dir()]
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{users} is damaged") from error
        if alive:
            return f"{alive[0].get('cmd', 'dvc')} (process {alive[0]['pid']})"
    with contextlib.suppress(OSError), lock.open("rb+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return "a DVC command"
    return ""


def cache_folder(root: Path) -> Path:
    """Where DVC keeps files: `cache.dir` of its local or shared configuration, else .dvc/cache."""
    for name in ("config.local", "config"):
        parser = configparser.ConfigParser(interpolation=None)
        parser.read(root / ".dvc" / name, encoding="utf-8")
        if folder := parser.get("cache", "dir", fallback=""):
            return (root / ".dvc" / folder).resolve()
    return root / ".dvc" / "cache"


def check_ray(compute: ComputeConfig) -> Finding:
    """Whether it can be imported, and which cluster would be asked. None is started, and none asked."""
    if compute.backend == "inline":
        return Finding("ray", OK, "not used: compute.backend = inline")
    try:
        import ray
    except ImportError as error:
        return Finding(
            "ray", FAIL, f"cannot be imported ({error})", "install the packages, or set compute.backend: inline"
        )
    if address := os.environ.get("RAY_ADDRESS"):
        return Finding("ray", OK, f"{ray.__version__}, on the cluster at RAY_ADDRESS = {address} (not asked)")
    where = (
        f"on the cluster at compute.address = {compute.address} (not asked)" if compute.address else "on this machine"
    )
    return Finding("ray", OK, f"{ray.__version__}, {where}")


def check_mlflow(tracking: TrackingConfig, root: Path, workload: str) -> Finding:
    """The database can be read and has the installed MLflow's schema; a server answers."""
    if not tracking.mlflow:
        return Finding("mlflow", OK, "not used: tracking.mlflow = false")
    from cmcore.edge.mlflow_writer import Store

    uri = Store.of(tracking, root, workload).uri
    if not uri.startswith("sqlite:///"):
        return _server(uri)
    path = Path(uri.removeprefix("sqlite:///"))
    if not path.is_file() or not path.stat().st_size:
        return Finding("mlflow", OK, f"no {path.name} yet: the first run makes it")
    away = "move it away: `cmlab sync` fills a new one from the files of the pipeline"
    try:
        present, wanted = schema(path), head_revision()
    except sqlite3.Error as error:
        return Finding("mlflow", FAIL, f"{path} cannot be read ({error})", away)
    if wanted is None:
        return Finding("mlflow", FAIL, "is not installed", "install the packages, or set tracking.mlflow: false")
    if present != wanted:
        text = f"{path} has the schema {present or 'of something else'}, and this MLflow expects {wanted}"
        return Finding("mlflow", FAIL, text, f"mlflow db upgrade '{uri}' if it is of an older MLflow, or {away}")
    return Finding("mlflow", OK, f"{path}, schema {present}")


def _server(uri: str) -> Finding:
    parts = urlsplit(uri)
    if parts.scheme not in DEFAULT_PORTS or not parts.hostname:
        return Finding("mlflow", OK, f"{uri} (not asked)")
    try:
        socket.create_connection((parts.hostname, parts.port or DEFAULT_PORTS[parts.scheme]), PATIENCE).close()
    except OSError as error:
        remedy = "start it: runs go on without, and `cmlab sync` sends later what it missed"
        return Finding("mlflow", WARN, f"{uri} does not answer ({error})", remedy)
    return Finding("mlflow", OK, f"{uri} answers")


def schema(path: Path) -> str:
    """The revision of a database's schema; empty where its tables are not MLflow's."""
    with _opened(path) as database:
        tables = {name for (name,) in database.execute("select name from sqlite_master where type = 'table'")}
        if "alembic_version" not in tables:
            return ""
        return next((revision for (revision,) in database.execute("select version_num from alembic_version")), "")


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[sqlite3.Connection]:
    """For reading alone."""
    database = sqlite3.connect(f"file:{quote(str(path))}?mode=ro", uri=True, timeout=PATIENCE)
    try:
        yield database
    finally:
        database.close()


def head_revision() -> str | None:
    """The schema that the installed MLflow expects, from its list of migrations; None where there is no MLflow.

    Read as text, as importing MLflow takes seconds.
    """
    found = importlib.util.find_spec("mlflow")
    if found is None or not found.submodule_search_locations:
        return None
    folder = Path(found.submodule_search_locations[0]) / "store" / "db_migrations" / "versions"
    texts = [file.read_text(encoding="utf-8") for file in folder.glob("*.py")]
    named, before = (
        {match for text in texts for match in re.findall(rf"^{key}\s*=\s*['\"](\w+)", text, re.MULTILINE)}
        for key in ("revision", "down_revision")
    )
    return next(iter(named - before), None)
