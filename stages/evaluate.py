"""The weights of a run -> reports/<workload>/metrics/<run>.json, a grid of samples, and the samples for the figures."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from cmcore.assemble.evaluation import Outcome, endpoint_run
from cmcore.assemble.summary import read_summary
from cmcore.atomic import write_atomic
from cmcore.data.png import to_png
from cmcore.evaluate.records import Replicate
from cmcore.pipeline.common import Setup, load
from cmcore.pipeline.files import write_arrays, write_json
from cmcore.pipeline.progress import listener
from cmcore.pipeline.replicates import job_name, produce
from cmcore.pipeline.tidy import remove
from cmcore.pipeline.track import track
from stages.evaluate_job import EvaluationFiles, evaluate


def compute(setup: Setup, name: str, replicate: int) -> Outcome:
    """Evaluate a replicate of the run; all but the first without scans and snapshots."""
    run, folders, config = setup.project.replicate(name, replicate), setup.folders, setup.project.sections.eval
    results = folders.run(name, replicate)
    folders.require(
        [
            folders.manifest,
            folders.reference,
            results,
            *(setup.weights(one, replicate) for one in (run.init, run.teacher)),
        ]
    )
    source = endpoint_run(setup.project.runs, run)
    teacher = setup.weights(source, replicate) if source else None
    work = folders.work / folders.workload / "shards"
    files = EvaluationFiles(folders.reference, results, teacher, work, replicate > 0, folders.data)
    fingerprint = read_summary(results)["fingerprint"]
    with setup.tracker(run, fingerprint) as tracker:
        with listener(job_name(f"evaluate {name}", replicate), "img") as listen:
            outcome = evaluate(setup.compute, run, folders.workload, config, files, listen)
        track(outcome.metrics, tracker)
    return outcome


def write(setup: Setup, name: str, outcomes: Sequence[Outcome]) -> list[Path]:
    """Write the outputs of all replicates; the result is the work files that recorded outputs make superfluous."""
    folders, (first, *others) = setup.folders, outcomes
    grid, metrics = folders.reports / "grids" / f"{name}.png", folders.reports / "metrics" / f"{name}.json"
    replicates = tuple(Replicate(seed=o.metrics.facts.seed, records=o.metrics.records) for o in others)
    write_arrays(folders.samples / f"{name}.npz", first.samples)
    write_atomic(grid, to_png(next(iter(first.samples.values())), columns=8))
    assert first.times is not None, "it is measured with the images, which the first replicate has"
    write_json(folders.sampling_times / f"{name}.json", first.times.to_json())
    write_json(metrics, replace(first.metrics, replicates=replicates).to_json())
    with setup.tracker(setup.project.run(name), first.metrics.records[0].provenance.fingerprint) as tracker:
        tracker.artifact(grid, "grids")
        tracker.artifact(metrics, "records")
    return [path for outcome in outcomes for path in outcome.superfluous]


def main(name: str) -> None:
    """Evaluate all replicates of the run and write its outputs."""
    remove(produce(load(), "evaluate", name))
