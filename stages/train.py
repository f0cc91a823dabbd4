"""One entry of `runs` -> outputs/<workload>/runs/<run>: weights, history, summary and snapshots."""

from collections.abc import Sequence
from pathlib import Path

from cmcore.assemble.checks import require_files
from cmcore.assemble.run import Run
from cmcore.assemble.training import FINAL, WEIGHTS, Inputs, fingerprint, work_folder
from cmcore.edge.ray_run import execute
from cmcore.edge.ray_train import execute_together
from cmcore.numbers import grouped
from cmcore.pipeline.common import Setup, load
from cmcore.pipeline.files import copy_into_place, write_seeds
from cmcore.pipeline.grow import begin, keep
from cmcore.pipeline.process import tell
from cmcore.pipeline.progress import listener
from cmcore.pipeline.replicates import job_name, produce
from cmcore.pipeline.tidy import tidy
from cmcore.train.timing import TIME
from stages.train_job import job


def train(setup: Setup, run: Run, inputs: Inputs) -> Path:
    """Train, or continue, the run in its work folder and return the folder of its results."""
    mark, said = fingerprint(run, inputs), job_name(f"train {run.name}", setup.replicate_of(run))
    folder = work_folder(setup.folders.work, setup.folders.workload, run.name, mark)
    known, final = (setup.compute, run, inputs, folder, setup.project.sections.eval.decoder), folder / FINAL
    with setup.tracker(run, mark) as tracker, listener(said, "img", tracker) as listen:
        alone = setup.compute.workers == 1 or run.weights is not None
        if images := begin(folder, run, inputs):
            tell(f"{said}: goes on from {grouped(images)} images of a shorter run")
        if not final.exists() and not alone:
            execute_together(setup.compute, folder, job, *known, progress=listen)
        elif not final.exists():
            execute(setup.compute, job, *known, progress=listen)
        tracker.artifact(final / WEIGHTS, "weights")
    keep(folder, run, inputs)
    tidy(folder)
    return final


def compute(setup: Setup, name: str, replicate: int) -> Path:
    """Train, or continue, a replicate of the run and return the folder of its results."""
    run, folders = setup.project.replicate(name, replicate), setup.folders
    require_files([run])
    inputs = Inputs(folders.data, *(setup.weights(source, replicate) for source in (run.init, run.teacher)))
    folders.require([folders.manifest, inputs.init, inputs.teacher])
    return train(setup, run, inputs)


def write(setup: Setup, name: str, finals: Sequence[Path]) -> list[Path]:
    """Write the outputs of all replicates; no work file becomes superfluous when they are recorded."""
    folders, seed = setup.folders, setup.project.run(name).train.seed
    results = {folders.run(name, replicate): final for replicate, final in enumerate(finals)}
    copy_into_place({**results, folders.times / f"{name}.json": finals[0].parent / TIME})
    write_seeds(folders.seeds(name), range(seed, seed + len(finals)))
    return []


def main(name: str) -> None:
    """Train all replicates of the run and write its outputs."""
    produce(load(), "train", name)
