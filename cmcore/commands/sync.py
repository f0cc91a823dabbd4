"""`cmlab sync`: bring MLflow up to the files of the active workload."""

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from statistics import fmean, stdev
from typing import Any

from cmcore.assemble.run import Run, resolved
from cmcore.assemble.summary import SUMMARY, read_summary
from cmcore.assemble.training import WEIGHTS, Inputs, fingerprint
from cmcore.commands.reproduction import ROW, arrange, gather, reproduction
from cmcore.commands.sync_searches import search_runs, written
from cmcore.data.images import open_data
from cmcore.edge.mlflow_writer import Data, RunState, Store, TrackingError, total, wait_longer
from cmcore.evaluate.records import RunMetrics, score_name
from cmcore.pipeline.common import Folders, Setup
from cmcore.pipeline.track import run_tags, track
from cmcore.tracking import jsonl
from cmcore.train import checkpoint
from cmcore.train.session import HISTORY


def parameters(run: Run, inputs: Inputs, summary: dict[str, Any], header: dict[str, Any]) -> dict[str, Any]:
    """The parameters of live tracking; of a run that params.yaml no longer describes, those in its files."""
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


def trained(setup: Setup, name: str, replicate: int) -> RunState | None:
    """The state after the training of a replicate of a run, if its results are here."""
    folders, run = setup.folders, setup.project.replicate(name, replicate)
    folder = folders.run(name, replicate)
    if not all((folder / file).exists() for file in (SUMMARY, WEIGHTS, HISTORY)):
        return None
    summary = read_summary(folder)
    identity, header = summary["fingerprint"], checkpoint.header(folder / WEIGHTS)
    tags = run_tags(folders.workload, name, summary["method"], identity)
    tags |= {"init": summary["init"], "ema": summary["eval_ema"], **_seed(summary["seed"], replicate)}
    state = RunState(tags, "FINISHED", moment=written(folder / HISTORY))
    values = parameters(run, _inputs(folders, run, replicate), summary, header)
    if "method_config" in values:
        data = open_data(folders.data)
        state.tags["data_digest"] = data.digest[:16]
        facts = {"images": len(data), "shape": list(data.shape), "classes": data.classes}
        state.data[Data(f"{folders.workload} images", data.digest, "training", json.dumps(facts))] = None
    state.params(values)
    for row in jsonl.read(folder / HISTORY):
        measured = {f"train/{key}": math.nan if row[key] is None else row[key] for key in row if key != "images"}
        state.metrics(measured, row["images"])
    state.artifact(folder / WEIGHTS, "weights")
    for picture in sorted((folders.work / folders.workload / f"{name}-{identity}" / "snapshots").glob("*.png")):
        state.artifact(picture, "samples")
    return state


def _seed(seed: int, replicate: int) -> dict[str, str]:
    return {"seed": str(seed), "replicate": str(replicate)}


def _inputs(folders: Folders, run: Run, replicate: int) -> Inputs:
    """The data, and the weights of the same replicate, or of the only one, of what the run starts from."""
    ours = [[folders.weights(source, index) for index in (replicate, 0)] for source in (run.init, run.teacher)]
    init, teacher = (same if same.exists() else only for same, only in ours)
    return Inputs(folders.data, init, teacher)


def unreadable(name: str, error: Exception) -> TrackingError:
    """The error of a run whose files cannot be read."""
    return TrackingError(f"the files of run {name} cannot be read: {' '.join(str(error).split())}")


def recorded(folders: Folders, name: str) -> list[RunMetrics]:
    """The records of every replicate of a run, the first one with what only it has; none where there is no file."""
    path = folders.reports / "metrics" / f"{name}.json"
    if not path.exists():
        return []
    try:
        first = RunMetrics.from_json(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        raise unreadable(name, error) from error
    others = [RunMetrics(facts=replace(first.facts, seed=one.seed), records=one.records) for one in first.replicates]
    return [replace(first, replicates=()), *others]


def evaluated(metrics: RunMetrics, replicate: int, folders: Folders, training: RunState | None) -> RunState:
    """The state after an evaluation: that of the training goes on, if it is the same run."""
    name, source = metrics.facts.run, metrics.records[0].provenance
    path, grid = folders.reports / "metrics" / f"{name}.json", folders.reports / "grids" / f"{name}.png"
    state = training
    if state is None or state.tags["fingerprint"] != source.fingerprint:
        tags = run_tags(source.workload, name, source.method, source.fingerprint) | {"init": metrics.facts.init}
        tags |= {"data_digest": source.reference_digest[:16], **_seed(metrics.facts.seed, replicate)}
        state = RunState(tags, "FINISHED")
    state.moment = written(path)
    track(metrics, state)
    facts = json.dumps({"images": source.reference_count, "extractor": source.extractor})
    state.data[Data(f"{source.workload} reference", source.reference_digest, "evaluation", facts)] = None
    if not replicate:
        state.artifact(path, "records")
    if not replicate and grid.exists():
        state.artifact(grid, "grids")
    return state


def runs_of(setup: Setup, name: str, measured: Sequence[RunMetrics]) -> list[RunState]:
    """One for each training seed, two where the reports are of another training than the outputs, or none.

    Those of several seeds stand below one of the whole row, which comes first.

    Raises:
        TrackingError: a file cannot be read.
    """
    folders = setup.folders
    try:
        found: list[RunState] = []
        for replicate in range(max(len(measured), 1 + len(list(folders.seeds(name).glob("*/"))))):
            training = trained(setup, name, replicate)
            seen = measured[replicate] if replicate < len(measured) else None
            evaluation = seen and evaluated(seen, replicate, folders, training)
            found += [one for one in dict.fromkeys((training, evaluation)) if one is not None]
        if len(measured) < 2:
            return found
        parent = row(measured, written(folders.reports / "metrics" / f"{name}.json"))
    except (OSError, ValueError, KeyError, IndexError) as error:
        raise unreadable(name, error) from error
    marks = {one.records[0].provenance.fingerprint for one in measured}
    for one in found:
        one.parent = parent if one.tags["fingerprint"] in marks else None
    return [parent, *found]


def row(measured: Sequence[RunMetrics], moment: int) -> RunState:
    """A run of the table with several training seeds: means of its values over them, and standard deviations."""
    facts, source = measured[0].facts, measured[0].records[0].provenance
    tags = run_tags(source.workload, facts.run, source.method, f"{source.fingerprint}-seeds")
    seeds = ", ".join(str(one.facts.seed) for one in measured)
    state = RunState({**tags, "kind": ROW, "init": facts.init, "seeds": seeds}, "FINISHED", moment=moment)
    values: dict[tuple[str, str, int], list[float]] = {}
    for record in (record for one in measured for record in one.records):
        values.setdefault((score_name(record), record.key, record.provenance.nfe), []).append(record.value)
    for (name, key, nfe), each in values.items():
        state.metrics({f"eval/{name}": fmean(each)}, 0)
        state.metrics({f"eval_by_nfe/{key}": fmean(each)}, nfe)
        if len(each) > 1:
            state.metrics({f"eval_std/{name}": stdev(each)}, 0)
    return state


def sync(setup: Setup, *, patient: bool = True) -> list[str]:
    """Send what is missing; the result says what that was, in a line for every run, search and reproduction.

    Args:
        setup: the parameters.
        patient: whether a slow server may take its time.

    Raises:
        TrackingError: MLflow does not answer, or refuses, or a file cannot be read.
    """
    if patient:
        wait_longer()
    store = Store.of(setup.tracking, setup.folders.root, setup.project.workload)

    def send(runs: list[RunState], to: Store = store) -> str:
        sent = total([run.send(to) for run in runs])
        missing = f"sent {sent.points} points, {sent.params} parameters and {sent.files} files"
        return missing if any(sent) else "nothing was missing"

    measured = {name: recorded(setup.folders, name) for name in setup.project.runs}
    states = [state for name, found in measured.items() for state in runs_of(setup, name, found)]
    lines, whole = [], reproduction(setup, measured)
    if whole is not None:
        gather(whole, measured, states)
        lines.append(f"reproduction {whole.tags['fingerprint']}: {send([whole])}")
    lines += [f"{one.tags['run']} ({one.tags['fingerprint']}): {send([one])}" for one in states]
    if whole is not None and (models := arrange(setup, store, whole, measured, states)):
        lines.append(f"models: {models}")
    for search, runs in search_runs(setup):
        lines.append(f"tune/{search}, {len(runs) - 1} trials: {send(runs, store.searches)}")
    return lines or [f"{setup.project.workload}: no outputs and no reports to tell of; `cmlab repro` makes them"]
