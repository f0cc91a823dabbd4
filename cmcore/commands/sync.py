"""`cmlab sync`: bring MLflow up to the files of the active workload."""

import json
import math
from typing import Any

from cmcore.assemble.run import Run, resolved
from cmcore.assemble.summary import SUMMARY, read_summary
from cmcore.assemble.training import WEIGHTS, Inputs, fingerprint
from cmcore.commands.sync_searches import search_runs, written
from cmcore.data.images import open_data
from cmcore.edge.mlflow_writer import RunState, Store, TrackingError, total, wait_longer
from cmcore.evaluate.records import RunMetrics
from cmcore.pipeline.common import Folders, Setup
from cmcore.pipeline.track import REPORT, run_tags, track, track_report
from cmcore.tracking import jsonl
from cmcore.train import checkpoint
from cmcore.train.session import HISTORY


def parameters(run: Run, folders: Folders, summary: dict[str, Any], header: dict[str, Any]) -> dict[str, Any]:
    """The parameters of live tracking; of a run that params.yaml no longer describes, those in its files."""
    inputs = Inputs(folders.data, folders.weights(run.init), folders.weights(run.teacher))
    there = inputs.init.exists() and inputs.teacher.exists() and (inputs.data / "manifest.json").exists()
    if there and fingerprint(run, inputs) == summary["fingerprint"]:
        return resolved(run)
    config = {k: v for k, v in header["net"].items() if k != "kind"}
    net = {"kind": header["net"]["kind"], "config": config, "inputs": header["inputs"]}
    return {
        **{key: summary[key] for key in ("method", "init", "conditional")},
        **{"name": summary["run"], "net": net, "diffusion": header["diffusion"]},
        "train": {key: summary[key] for key in ("seed", "eval_ema")},
    }


def trained(run: Run, folders: Folders) -> RunState | None:
    """The state after the training of a run, if its results are here."""
    folder = folders.runs / run.name
    if not all((folder / name).exists() for name in (SUMMARY, WEIGHTS, HISTORY)):
        return None
    summary = read_summary(folder)
    identity, header = summary["fingerprint"], checkpoint.header(folder / WEIGHTS)
    tags = run_tags(folders.workload, run.name, summary["method"], identity)
    state = RunState(
        tags | {"init": summary["init"], "ema": summary["eval_ema"]}, "FINISHED", moment=written(folder / HISTORY)
    )
    values = parameters(run, folders, summary, header)
    if "method_config" in values:
        state.tags["data_digest"] = open_data(folders.data).digest[:16]
    state.params(values)
    for row in jsonl.read(folder / HISTORY):
        measured = {f"train/{name}": math.nan if row[name] is None else row[name] for name in row if name != "images"}
        state.metrics(measured, row["images"])
    state.artifact(folder / WEIGHTS, "weights")
    for picture in sorted((folders.work / folders.workload / f"{run.name}-{identity}" / "snapshots").glob("*.png")):
        state.artifact(picture, "samples")
    return state


def evaluated(name: str, folders: Folders, training: RunState | None) -> RunState | None:
    """The state after its evaluation, if its record is here: that of the training goes on, if it is the same run."""
    path, grid = folders.reports / "metrics" / f"{name}.json", folders.reports / "grids" / f"{name}.png"
    if not path.exists():
        return None
    metrics = RunMetrics.from_json(json.loads(path.read_text(encoding="utf-8")))
    source = metrics.records[0].provenance
    state = training
    if state is None or state.tags["fingerprint"] != source.fingerprint:
        tags = run_tags(source.workload, name, source.method, source.fingerprint) | {"init": metrics.facts.init}
        state = RunState(tags | {"data_digest": source.reference_digest[:16]}, "FINISHED")
    state.moment = written(path)
    track(metrics, state)
    state.artifact(path, "records")
    if grid.exists():
        state.artifact(grid, "grids")
    return state


def runs_of(run: Run, folders: Folders) -> list[RunState]:
    """One, or two where the reports are of another training than the outputs, or none.

    Raises:
        TrackingError: a file cannot be read.
    """
    try:
        training = trained(run, folders)
        evaluation = evaluated(run.name, folders, training)
    except (OSError, ValueError, KeyError, IndexError) as error:
        raise TrackingError(f"the files of run {run.name} cannot be read: {' '.join(str(error).split())}") from error
    return [one for one in dict.fromkeys((training, evaluation)) if one is not None]


def report(folders: Folders) -> RunState | None:
    """The page, the tables and the figures, if they are here."""
    page = folders.reports / "index.html"
    if not page.exists():
        return None
    state = RunState({**REPORT, "workload": folders.workload}, "FINISHED")
    track_report(folders.reports, state)
    return state


def sync(setup: Setup) -> list[str]:
    """Send what is missing; the result says what that was, in a line for every run, search and report."""
    wait_longer()
    store = Store.of(setup.tracking, setup.folders.root, setup.project.workload)

    def send(runs: list[RunState]) -> str:
        sent = total([run.send(store) for run in runs])
        missing = f"sent {sent.points} points, {sent.params} parameters and {sent.files} files"
        return missing if any(sent) else "nothing was missing"

    lines = []
    for run in setup.project.runs.values():
        lines += [f"{run.name} ({one.tags['fingerprint']}): {send([one])}" for one in runs_of(run, setup.folders)]
    for search, runs in search_runs(setup):
        lines.append(f"tune/{search}, {len(runs) - 1} trials: {send(runs)}")
    if (page := report(setup.folders)) is not None:
        lines.append(f"report: {send([page])}")
    return lines or [f"{setup.project.workload}: no outputs and no reports to tell of; `cmlab repro` makes them"]
