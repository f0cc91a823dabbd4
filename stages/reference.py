"""data -> outputs/<workload>/reference: the feature extractor, and the real images as it sees them."""

from pathlib import Path

from cmcore.atomic import replacing
from cmcore.edge.autoencoder import open_images, save_decoding
from cmcore.edge.inception import load_inception
from cmcore.edge.ray_run import execute, pick_device
from cmcore.edge.settings import ComputeConfig
from cmcore.evaluate.reference import reference, store_features, store_published
from cmcore.evaluate.settings import EvalConfig
from cmcore.pipeline.common import Setup, load
from cmcore.pipeline.progress import Emit, listener
from cmcore.pipeline.ready import Find, Results, put

INCEPTION = "inception"  # folder of the Inception reference, where its weights are


def job(compute: ComputeConfig, config: EvalConfig, workload: str, data: Path, out: Path, emit: Emit) -> None:
    """Train the extractor and store the reference; with Inception weights, store theirs as well."""
    del emit
    device = pick_device(compute)
    images = open_images(data, config.decoder, device)
    inception = load_inception(config.inception, device).extractor
    with replacing(out) as folder:
        reference(images, config, workload, folder, device)
        save_decoding(images, folder)
        if inception is not None and config.reference_npz:
            store_published(Path(config.reference_npz), inception.dim, folder / INCEPTION)
        elif inception is not None:
            store_features(images, inception, config, folder / INCEPTION, device)


def reads(setup: Setup, name: str) -> list[Path]:
    """The files that decide the result, beside parameters and code."""
    del name
    return [setup.folders.manifest]


def make(setup: Setup, name: str, find: Find) -> Results:
    """Make the reference of the workload in a folder of its own."""
    del name  # there is one for all runs
    config, folders, compute = setup.project.sections.eval, setup.folders, setup.compute
    out = folders.work / folders.workload / "reference"
    with listener("reference", "img") as listen:
        execute(compute, job, compute, config, folders.workload, find(folders.data), out, progress=listen)
    return {folders.reference: out}


def main() -> None:
    """Write the reference of the workload."""
    setup = load()
    setup.folders.require(reads(setup, ""))
    put(make(setup, "", Path))
