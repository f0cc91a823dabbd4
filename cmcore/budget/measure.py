"""What a step takes on this machine: a few real ones, of networks with random weights on images of the data."""

import time
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch

from cmcore.assemble.models import ModelShape, build_denoiser, some_labels
from cmcore.assemble.run import NONE, RANDOM, Run
from cmcore.assemble.training import image_batches
from cmcore.data.images import ImageData, Prepared
from cmcore.diffusion.precond import Denoiser
from cmcore.evaluate.classifier import train_classifier
from cmcore.evaluate.features import NetworkExtractor, random_extractor
from cmcore.evaluate.settings import ClassifierConfig
from cmcore.rng import seeded
from cmcore.train.precision import autocast, choose_matrix_units
from cmcore.train.state import new_state
from cmcore.train.steps import steps

LEAST, SECONDS = 3, 0.4  # calls that are timed, and their time in all, whichever is more
LONG, PATIENCE = 3.0, 15.0  # no more calls after so many seconds: of the processor, and of the clock
WARM = 1  # calls before them


def seconds_of(call: Callable[[], object], device: str = "cpu", seconds: float = SECONDS) -> float:
    """The least time of some calls, as what disturbs a call makes it longer.

    On a CPU it is time of the processor that this thread had, which counts no time that other programs had it; threads
    of torch share the work evenly.
    """
    clock = time.thread_time if device == "cpu" else time.perf_counter

    def once() -> float:
        start = clock()
        call()
        if device != "cpu":
            torch.cuda.synchronize()
        return clock() - start

    began = time.perf_counter()
    for _ in range(WARM):
        once()
    found = [once()]
    while (len(found) < LEAST or sum(found) < seconds) and sum(found) < LONG:
        if time.perf_counter() - began > PATIENCE:
            break
        found.append(once())
    return min(found)


def sample_data(images: np.ndarray, classes: int) -> ImageData:
    """Images uint8 (n, C, R, R) as if they were a prepared data set."""
    labels = np.arange(len(images)) % max(classes, 1)
    return ImageData(images, labels, {"shape": list(images.shape[1:]), "classes": classes})


def training_seconds(
    run: Run, data: Prepared, rows: int, device: str = "cpu", *, seconds: float = SECONDS
) -> float:  # fmt: skip
    """Seconds of a training step of so many rows, by image: data, loss, optimiser, averages, and what else there is."""
    # Uncompiled, as to compile takes longer than all that is measured.
    run = replace(run, train=replace(run.train, batch=rows, micro_batch=0, compile=False, cuda_graphs=False))
    choose_matrix_units(run.train.precision, run.train.jvp_precision)
    shape = ModelShape.of(data, run.conditional)

    def denoiser(boundary: bool = False) -> Denoiser:
        return build_denoiser(run.net, shape, run.diffusion, boundary=boundary).to(device)

    init = None if run.init == RANDOM else denoiser()
    teacher = None if run.teacher == NONE else denoiser()
    state = new_state(run.objective, denoiser(run.objective.traits.boundary), run.train, init=init, teacher=teacher)
    loop = steps(state, run.objective, image_batches(data, run, device), run.train)
    return seconds_of(lambda: next(loop), device, seconds) / rows


def forward_seconds(
    run: Run, data: Prepared, rows: int, device: str = "cpu", *, seconds: float = SECONDS
) -> float:  # fmt: skip
    """Seconds of an evaluation of the network by image, in batches of so many rows."""
    shape = ModelShape.of(data, run.conditional)
    net = build_denoiser(run.net, shape, run.diffusion, boundary=False).to(device).eval()
    with seeded(0, "measure"):
        x = torch.randn(rows, *data.shape, device=device)
    sigma = torch.ones(rows, dtype=torch.float64, device=device)
    labels = some_labels(shape, rows, device)
    with torch.no_grad(), autocast(run.train.precision, torch.device(device)):
        return seconds_of(lambda: net(x, sigma, labels), device, seconds) / rows


def feature_seconds(data: ImageData, config: ClassifierConfig, device: str = "cpu") -> tuple[float, float]:
    """Seconds by image of the workload's extractor: of its training, 0 where it has none, and of its features."""
    channels, resolution, _ = data.shape
    extractor = random_extractor(channels, resolution, width=config.width, features=config.features).to(device)
    rows = torch.from_numpy(np.resize(data.images, (256, *data.shape)))
    features = seconds_of(lambda: extractor(rows), device, 0.2) / len(rows)
    if data.classes < 2:
        return 0.0, features
    # Few images, as its accuracy on all of them is measured as well.
    some, few = slice(0, 2 * config.batch), replace(config, images=4 * config.batch)
    images, labels = data.images[some], data.labels[some]

    def train() -> None:
        made, _ = train_classifier(images, labels, few, classes=data.classes, workload="measure", device=device)
        assert isinstance(made, NetworkExtractor)

    return max(0.0, seconds_of(train, device, 0.2) - len(images) * features) / few.images, features
