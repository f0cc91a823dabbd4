"""data -> outputs/<workload>/data: the images as one array, with labels and a manifest."""

from pathlib import Path

from cmcore.assemble.models import save_empty
from cmcore.assemble.run import NONE, RANDOM
from cmcore.data.settings import DataConfig
from cmcore.data.sources.prepare import prepare
from cmcore.edge.encoder import encoder_maker
from cmcore.edge.ray_run import execute, pick_device
from cmcore.edge.settings import ComputeConfig
from cmcore.edge.text import load_text_encoder
from cmcore.pipeline.code import require_unchanged
from cmcore.pipeline.common import load
from cmcore.pipeline.files import write_seeds
from cmcore.pipeline.progress import Emit, listener, reporter
from cmcore.train.precision import choose_matrix_units


def job(compute: ComputeConfig, config: DataConfig, out: Path, emit: Emit) -> None:
    """Read, check, convert and, with a codec, encode the images."""
    choose_matrix_units("fp32")  # latents are data
    device = pick_device(compute)
    codec = encoder_maker(config.codec, device) if config.codec else None
    prepare(config, out, reporter(emit), codec, load_text_encoder(config.text, device) if config.text else None)


def main() -> None:
    """Write the data set, and the weight files that `init: random` and `teacher: none` name."""
    setup = load()
    config = setup.project.sections.data
    with listener("prepare", "img") as listen:
        execute(setup.compute, job, setup.compute, config, setup.folders.data, progress=listen)
    require_unchanged(setup.project.sections, "prepare", setup.folders.code)
    for name in (RANDOM, NONE):
        save_empty(setup.folders.weights(name), name)
        write_seeds(setup.folders.seeds(name), [])
