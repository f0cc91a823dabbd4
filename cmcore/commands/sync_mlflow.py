"""`make sync-mlflow`: tell MLflow what the files of the active workload say and it does not know yet."""

import json
import math
from pathlib import Path
from typing import Any

from cmcore.assemble.run import Run, resolved
from cmcore.assemble.training import SUMMARY, WEIGHTS, Inputs, fingerprint
from cmcore.commands.sync_searches import search_replays
from cmcore.data.images import open_data
from cmcore.edge.mlflow_replay import Replay, TrackingError
from cmcore.edge.mlflow_store import store_uri
from cmcore.evaluate.records import from_json
from cmcore.pipeline.common import Folders, Setup, load
from cmcore.pipeline.process import guarded
from cmcore.pipeline.track import REPORT, run_tags, track, track_report
from cmcore.tracking import jsonl
from cmcore.train import checkpoint
from cmcore.train.session import HISTORY


def parameters(run: Run, folders: Folders, summary: dict[str, Any], header: dict[str, Any]) -> dict[str, Any]:
    """What live tracking would have logged; of a run that params.yaml no longer describes, what its files hold."""
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


def trained(run: Run, folders: Folders) -> Replay | None:
    """What the training of a run has to say, if its results are here."""
    folder = folders.runs / run.name
    if not all((folder / name).exists() for name in (SUMMARY, WEIGHTS, HISTORY)):
        return None
    summary = json.loads((folder / SUMMARY).read_text(encoding="utf-8"))
    mark, header = summary["fingerprint"], checkpoint.header(folder / WEIGHTS)
    tags = run_tags(folders.workload, run.name, summary["method"], mark)
    replay = Replay(tags | {"init": summary["init"], "ema": summary["eval_ema"]})
    values = parameters(run, folders, summary, header)
    if "method_config" in values:
        replay.tags["data_digest"] = open_data(folders.data).digest[:16]
    replay.params(values)
    replay.written_with(folder / HISTORY)
    for row in jsonl.read(folder / HISTORY):
        measured = {f"train/{name}": math.nan if row[name] is None else row[name] for name in row if name != "images"}
        replay.metrics(measured, row["images"])
    replay.artifact(folder / WEIGHTS, "weights")
    for picture in sorted((folders.work / folders.workload / f"{run.name}-{mark}" / "snapshots").glob("*.png")):
        replay.artifact(picture, "samples")
    return replay


def evaluated(name: str, folders: Folders, training: Replay | None) -> Replay | None:
    """What the evaluation has to say, if its record is here: added to the run's training, if it is of that."""
    path, grid = folders.reports / "metrics" / f"{name}.json", folders.reports / "grids" / f"{name}.png"
    if not path.exists():
        return None
    metrics = json.loads(path.read_text(encoding="utf-8"))
    source = from_json(metrics["records"][0]).provenance
    replay = training
    if replay is None or replay.tags["fingerprint"] != source.fingerprint:
        tags = run_tags(source.workload, name, source.method, source.fingerprint) | {"init": metrics["init"]}
        replay = Replay(tags | {"data_digest": source.reference_digest[:16]})
    replay.written_with(path)
    track(metrics, replay)
    replay.artifact(path, "records")
    if grid.exists():
        replay.artifact(grid, "grids")
    return replay


def replays(run: Run, folders: Folders) -> list[Replay]:
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


def report(folders: Folders) -> Replay | None:
    """The page, the tables and the figures, if they are here."""
    page = folders.reports / "index.html"
    if not page.exists():
        return None
    replay = Replay({**REPORT, "workload": folders.workload})
    track_report(folders.reports, replay)
    return replay


def sync(setup: Setup) -> list[str]:
    """Send what is missing; the result says what that was, in a line for every run, search and report."""
    uri, experiment = store_uri(setup.tracking, setup.folders.root), setup.tracking.experiment or setup.project.workload

    def send(runs: list[Replay]) -> str:
        params, points, files = (sum(c) for c in zip(*(run.send(uri, experiment) for run in runs), strict=True))
        some = params + points + files
        return f"sent {points} points, {params} parameters and {files} files" if some else "nothing was missing"

    lines = []
    for run in setup.project.runs.values():
        lines += [f"{run.name} ({one.tags['fingerprint']}): {send([one])}" for one in replays(run, setup.folders)]
    for mark, runs in search_replays(setup):
        lines.append(f"tune/{mark}, {len(runs) - 1} trials: {send(runs)}")
    if (page := report(setup.folders)) is not None:
        lines.append(f"report: {send([page])}")
    return lines or [f"{setup.project.workload}: no outputs and no reports to tell of; `make repro` makes them"]


def main(root: Path | None = None) -> None:
    """Sync the active workload of the project folder."""
    for line in sync(load(root)):
        print(line)


if __name__ == "__main__":
    guarded("sync-mlflow", main)
