"""One entry of `runs` -> outputs/<workload>/runs/<run>: weights, history, summary and snapshots."""

from pathlib import Path

from cmcore.assemble.checks import require_files
from cmcore.assemble.imports import import_run
from cmcore.assemble.models import ModelShape
from cmcore.assemble.preview import previewer
from cmcore.assemble.run import Run
from cmcore.assemble.training import FINAL, WEIGHTS, Inputs, fingerprint, train_run, work_folder
from cmcore.consistency import distances
from cmcore.data.images import open_data
from cmcore.edge.autoencoder import image_converter
from cmcore.edge.lpips import load_lpips
from cmcore.edge.ray_run import execute, pick_device
from cmcore.edge.ray_train import execute_together
from cmcore.edge.settings import ComputeConfig
from cmcore.evaluate.settings import DecoderConfig
from cmcore.pipeline.common import Setup, load
from cmcore.pipeline.files import copy_into_place
from cmcore.pipeline.progress import Emit, listener, reporter
from cmcore.pipeline.tidy import tidy
from cmcore.tracking.base import Sender
from cmcore.train.steps import ALONE, Worker
from cmcore.train.timing import TIME


def job(
    compute: ComputeConfig, run: Run, inputs: Inputs, folder: Path, decoder: DecoderConfig, emit: Emit,
    worker: Worker = ALONE,
) -> Path:  # fmt: skip
    """Train, or continue, the run in its work folder. Without a decoder, latents are not shown on the way."""
    if run.weights is not None:
        return import_run(run, inputs, folder, tracker=Sender(emit), on_progress=reporter(emit))
    device = pick_device(compute)
    if "lpips" in run.services:
        distances.provide("lpips", load_lpips(run.train.lpips_weights, device=device))
    data = open_data(inputs.data)
    to_images = image_converter(data, decoder, device)
    preview = to_images and previewer(run, ModelShape.of(data, run.conditional), device=device, to_images=to_images)
    return train_run(
        run, inputs, folder, tracker=Sender(emit), on_progress=reporter(emit), preview=preview, device=device,
        worker=worker,
    )  # fmt: skip


def train(setup: Setup, run: Run, inputs: Inputs) -> Path:
    """Train, or continue, the run in its work folder and return the folder of its results."""
    compute, folder = setup.compute, work_folder(setup.folders.work, setup.folders.workload, run, inputs)
    known = (compute, run, inputs, folder, setup.project.sections.eval.decoder)
    final = folder / FINAL
    mark, said = fingerprint(run, inputs), f"train {run.name}"
    with setup.tracker(run, mark) as tracker, listener(said, "img", tracker) as listen:
        alone = compute.workers == 1 or run.weights is not None
        if not final.exists() and not alone:
            execute_together(compute, folder, job, *known, progress=listen)
        elif not final.exists():
            execute(compute, job, *known, progress=listen)
        tracker.artifact(final / WEIGHTS, "weights")
    tidy(folder)
    return final


def produce(setup: Setup, name: str) -> list[Path]:
    """Train the run and write its outputs; no work file becomes superfluous when they are recorded."""
    run, folders = setup.project.run(name), setup.folders
    require_files([run])
    starts = [folders.weights(run.init), folders.weights(run.teacher)]
    folders.require([folders.manifest, *starts])
    final = train(setup, run, Inputs(folders.data, *starts))
    copy_into_place({folders.runs / name: final, folders.times / f"{name}.json": final.parent / TIME})
    return []


def main(name: str) -> None:
    """Train the run and write its outputs."""
    produce(load(), name)
