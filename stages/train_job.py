"""The job of a training run: training itself, in a process of Ray's or in the driver's."""

from dataclasses import replace
from pathlib import Path

from cmcore.assemble.evaluation import captions_drawn
from cmcore.assemble.imports import import_run
from cmcore.assemble.models import ModelShape
from cmcore.assemble.preview import previewer
from cmcore.assemble.run import Run
from cmcore.assemble.training import Inputs, train_run
from cmcore.consistency import distances
from cmcore.data.images import open_data
from cmcore.edge.autoencoder import image_converter
from cmcore.edge.compile_cache import keep_compiled
from cmcore.edge.lpips import load_lpips
from cmcore.edge.ray_run import pick_device
from cmcore.edge.settings import ComputeConfig
from cmcore.evaluate.settings import DecoderConfig
from cmcore.pipeline.progress import Emit, reporter, spoken
from cmcore.tracking.base import Sender
from cmcore.train.workers import ALONE, Worker


def job(
    compute: ComputeConfig, run: Run, inputs: Inputs, folder: Path, decoder: DecoderConfig, emit: Emit,
    worker: Worker = ALONE,
) -> Path:  # fmt: skip
    """Train, or continue, the run in its work folder. Without a decoder, latents are not shown on the way."""
    if run.weights is not None:
        return import_run(run, inputs, folder, tracker=Sender(emit), on_progress=reporter(emit))
    device = pick_device(compute)
    keep_compiled(compute)
    if "lpips" in run.services:
        distances.provide("lpips", load_lpips(run.train.lpips_weights, pooling=run.train.lpips_pooling, device=device))
    data = open_data(inputs.data)
    to_images = image_converter(inputs.data, decoder, device)
    preview = to_images and previewer(
        run, ModelShape.of(data, run.conditional), device=device, to_images=to_images,
        captions=captions_drawn(run, data.told),
    )  # fmt: skip
    with spoken(emit):
        return train_run(
            run, inputs, folder, tracker=Sender(emit), on_progress=reporter(emit), preview=preview, device=device,
            worker=replace(worker, rows=compute.rows),
        )  # fmt: skip
