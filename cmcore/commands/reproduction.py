"""The newest reproduction in MLflow: a parent of the runs in the tables, the pages to open, and the models to load."""

import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING

from cmcore.closure import revision
from cmcore.config import digest
from cmcore.edge.mlflow_model import save
from cmcore.edge.mlflow_views import COMPARISON, TRAINING, comparison, keep_views, training
from cmcore.edge.mlflow_writer import NAME, NOTE, RunState, Store, TrackingError
from cmcore.errors import reason
from cmcore.evaluate.records import RunMetrics, score_name
from cmcore.pipeline.common import Setup
from cmcore.pipeline.track import track_report

if TYPE_CHECKING:
    from mlflow import MlflowClient

KIND = "reproduction"
ROW = "row"  # the kind of a run in MLflow that stands for all training seeds of one of ours
PAGE = "index.html"
TEACHER, BEST = "teacher", "best-{}-step"  # aliases of models
FEW = (1, 2)  # numbers of function evaluations with a best model
Measured = Mapping[str, Sequence[RunMetrics]]  # by run: the records of each training seed


def fingerprints(measured: Measured) -> dict[str, str]:
    """Those of every run and seed, with the run."""
    return {one.records[0].provenance.fingerprint: name for name, each in measured.items() for one in each}


def reproduction(setup: Setup, measured: Measured) -> RunState | None:
    """The parent of what the report shows, with the report; None where there is none yet."""
    marks, folders = fingerprints(measured), setup.folders
    if not marks or not (folders.reports / PAGE).is_file():
        return None
    mark, rows = digest(sorted(marks)), sum(bool(each) for each in measured.values())
    seeds = max(map(len, measured.values()))
    each = f"each from up to {seeds} training seeds" if seeds > 1 else "of one training seed"
    note = (
        f"**{rows} runs of {folders.workload}**, {each}."
        f" The page with tables and figures is the artifact `{PAGE}`.\n\n"
        f"Models: `models:/{setup.tracking.experiment or folders.workload}@{BEST.format(1)}`, `@{TEACHER}` and others. "
        "`cmlab ui` prints the links to the charts."
    )
    tags = {"run": KIND, "fingerprint": mark, "kind": KIND, "workload": folders.workload, KIND: mark}
    tags |= {NAME: f"{KIND} {mark[:8]}", NOTE: note, "git_revision": revision()}
    state = RunState(tags, "FINISHED")
    track_report(folders.reports, state)
    return state


def gather(whole: RunState, measured: Measured, states: Sequence[RunState]) -> None:
    """Put the runs of a reproduction below it: those of a table's row, and with several seeds each below its row."""
    marks = fingerprints(measured)
    for state in states:
        row = state.tags["kind"] == ROW
        if not row and state.tags["fingerprint"] not in marks:
            continue
        state.tags[KIND] = whole.tags["fingerprint"]
        state.tags["compared"] = "no" if state.parent else "yes"
        state.tags[NAME] = (
            state.tags["run"] if row or not state.parent else f"{state.tags['run']} seed {state.tags['seed']}"
        )
        state.tags[NOTE] = described(state, measured[state.tags["run"]])
        state.parent = state.parent or whole


def described(state: RunState, measured: Sequence[RunMetrics]) -> str:
    """A run in a sentence or two."""
    facts, own = measured[0].facts, state.tags.get("seed")
    records = [record for one in measured for record in one.records if str(one.facts.seed) == own]
    values = ", ".join(f"{one.value:.4g} at {one.provenance.nfe} NFE" for one in records if one.key == "fd")
    start = "random weights" if facts.init == "random" else f"the run `{facts.init}`"
    seeds = f"the means over {len(measured)} training seeds, whose runs are below" if own is None else f"seed {own}"
    return (
        f"Method `{facts.method}`, from {start}, {facts.images:,} images, {facts.parameters:,} parameters: {seeds}."
        + (f"\n\nFrechet distance: {values}." if values else "")
    )


def chosen(setup: Setup, measured: Measured) -> dict[str, str]:
    """Aliases and their runs: the best mean Frechet distance at few function evaluations, and the first teacher."""
    found: dict[str, str] = {}
    parents = {parent for run in setup.project.runs.values() for parent in run.parents}
    if teacher := next((name for name in measured if name in parents and measured[name]), ""):
        found[TEACHER] = teacher
    for nfe in FEW:
        means = {name: fmean(values) for name, each in measured.items() if (values := _distances(each, nfe))}
        if means:
            found[BEST.format(nfe)] = min(means, key=means.__getitem__)
    return found


def _distances(each: Sequence[RunMetrics], nfe: int) -> list[float]:
    return [
        record.value for one in each for record in one.records if record.key == "fd" and record.provenance.nfe == nfe
    ]


def arrange(setup: Setup, store: Store, whole: RunState, measured: Measured, states: Sequence[RunState]) -> str:
    """Write the pages of a reproduction that was sent, and register its models; the result says which.

    Args:
        setup: the parameters.
        store: where the runs are.
        whole: the reproduction.
        measured: its records.
        states: its runs, as they were sent.

    Raises:
        TrackingError: MLflow does not answer, or refuses.
    """
    from mlflow import MlflowClient

    records = [record for each in measured.values() for one in each for record in one.records]
    rows = Counter(
        nfe
        for each in measured.values()
        for nfe in {one.provenance.nfe for run in each for one in run.records if one.key == "fd"}
    )
    alone = max(rows.values(), default=0) < 2
    distances = sorted(nfe for nfe, count in rows.items() if count > 1 or alone)  # a bar by itself compares nothing
    others = sorted({score_name(record) for record in records if record.key != "fd"})
    mark = whole.tags["fingerprint"]
    keys = {record.key for record in records}
    views = {COMPARISON: comparison(mark, distances, others[:20], keys), TRAINING: training(mark)}
    note = f"Runs of the workload **{setup.project.workload}**. `cmlab ui` prints the links to their comparison."
    try:
        client = MlflowClient(tracking_uri=store.uri)
        group = client.get_experiment_by_name(store.experiment)
        assert group is not None, "runs were sent to it"
        keep_views(client, group.experiment_id, note, views)
        aliases: dict[str, list[str]] = {}
        for alias, name in chosen(setup, measured).items():
            aliases.setdefault(name, []).append(alias)
        for name, own in aliases.items():
            state = next((one for one in states if _can_be_sampled(one, name, measured)), None)
            if state is not None:
                _register(client, setup, store, name, state, own)
    except Exception as error:  # of MLflow, SQLAlchemy, alembic, requests or sqlite
        raise TrackingError(f"MLflow at {store.uri} did not take the models: {reason(error, 300)}") from error
    return ", ".join(f"{alias} is {name}" for name, own in aliases.items() for alias in own)


def _can_be_sampled(state: RunState, name: str, measured: Measured) -> bool:
    """Whether it is the first seed of a run, with its weights here and the parameters that it was trained with."""
    return state.tags["fingerprint"] == measured[name][0].records[0].provenance.fingerprint and "method_config" in {
        key.partition(".")[0] for key in state.values
    }


def _register(
    client: "MlflowClient", setup: Setup, store: Store, name: str, state: RunState, aliases: Sequence[str]
) -> None:
    """A version of the model with the experiment's name, unless there is one of these weights, and its aliases."""
    from mlflow.exceptions import MlflowException

    model, mark = store.experiment, state.tags["fingerprint"]
    try:
        client.create_registered_model(model, description=f"Models of the workload {setup.project.workload}.")
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    known = {one.tags.get("fingerprint"): one.version for one in client.search_model_versions(f"name = '{model}'")}
    if mark not in known:
        facts = {"workload": setup.project.workload, "run": name, "fingerprint": mark}
        with tempfile.TemporaryDirectory() as folder:
            save(setup.project, name, setup.folders.root, Path(folder) / "model", facts)
            client.log_artifacts(state.id, str(Path(folder) / "model"), "model")
        source = f"{client.get_run(state.id).info.artifact_uri}/model"
        note = state.tags.get(NOTE, "")
        made = client.create_model_version(model, source, state.id, tags=facts, description=note)
        known[mark] = made.version
    held = client.get_registered_model(model).aliases
    for alias in aliases:
        if str(held.get(alias)) != str(known[mark]):
            client.set_registered_model_alias(model, alias, str(known[mark]))
