"""The weights of all runs -> outputs/<workload>/edits: images restored from a known part, and their errors."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from cmcore.assemble.editing import can_restore
from cmcore.assemble.gallery import COUNT, STEPS, edits, factor_of
from cmcore.assemble.results import TrainedRun, open_run
from cmcore.atomic import replacing
from cmcore.closure import revision
from cmcore.config import plain
from cmcore.data.images import TEST, ImageData, open_data
from cmcore.edge.ray_run import execute, pick_device
from cmcore.edge.settings import ComputeConfig
from cmcore.pipeline.common import Folders, Setup, load
from cmcore.pipeline.files import write_arrays, write_json
from cmcore.pipeline.progress import Emit, listener
from cmcore.report.editing import ERRORS, IMAGES, KNOWN, TRUTH, Editing, result_key
from cmcore.report.gallery import Restored

SHOWN = 8  # images, of COUNT
SEED = 0  # of the noise


def job(compute: ComputeConfig, folders: Folders, names: Sequence[str], emit: Emit) -> None:
    """Restore images with every run that can, and write errors and images."""
    del emit
    test = folders.data / TEST
    data = open_data(test if test.is_dir() else folders.data)
    runs, fixed, places, found, factor = list[TrainedRun](), list[str](), list[int](), [], 0
    arrays = dict[str, np.ndarray]()
    if isinstance(data, ImageData):
        for run in (open_run(name, folders.root, device=pick_device(compute)) for name in names):
            runs.append(run) if can_restore(run.method, run.sampling) else fixed.append(run.name)
        # Evenly spaced, as some data sets stand in the order of their classes.
        places = np.linspace(0, len(data) - 1, min(COUNT, len(data))).astype(int).tolist()
        reads = any(run.model.shape.reads for run in runs)
        truth, labels = data.seen("words" if reads else False).batch(places)
        factor = factor_of(truth.shape[-1])
        found = edits(runs, truth, steps=STEPS, factor=factor, seed=SEED, labels=labels)
        arrays = {TRUTH: truth.numpy()} | {f"{KNOWN}{edit.task}": edit.known for edit in found}
        arrays |= {result_key(edit.task, one): one.images for edit in found for one in edit.results}
    facts = Editing(
        workload=folders.workload,
        data=data.digest,
        held_out=test.is_dir(),
        images=tuple(places),
        seed=SEED,
        factor=factor,
        fingerprints={run.name: run.model.meta.get("fingerprint", "") for run in runs},
        code=revision(),
        diffusion=tuple(run.name for run in runs if not run.method.traits.few_step),
        fixed=tuple(fixed),
        errors={edit.task: tuple(Restored(**one.numbers) for one in edit.results) for edit in found},
    )
    with replacing(folders.edits) as folder:
        write_json(folder / ERRORS, plain(facts))
        write_arrays(folder / IMAGES, {name: images[:SHOWN] for name, images in arrays.items()})


def compute(setup: Setup, replicate: int = 0) -> None:
    """Edit with the first replicate of every run."""
    assert replicate == 0
    folders, names = setup.folders, tuple(setup.project.runs)
    folders.require([folders.manifest, *(folders.weights(name) for name in names)])
    with listener("edit", "img") as listen:
        execute(setup.compute, job, setup.compute, folders, names, progress=listen)


def write(setup: Setup, made: Sequence[None]) -> list[Path]:
    """Nothing is left to write, and no work file becomes superfluous."""
    del setup, made
    return []


def main() -> None:
    """Write the edits of the workload."""
    compute(load())
