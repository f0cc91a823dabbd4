"""data -> outputs/<workload>/reference: the feature extractor, and the real images as it sees them."""

from collections.abc import Sequence
from pathlib import Path

from cmcore.atomic import replacing
from cmcore.data.images import TEST
from cmcore.edge.autoencoder import images_of, reconstructions_of, save_decoding
from cmcore.edge.dinov2 import load_dinov2
from cmcore.edge.inception import load_inception
from cmcore.edge.ray_run import execute, pick_device
from cmcore.edge.settings import ComputeConfig
from cmcore.evaluate.reference import load_reference, reference, store_features, store_published
from cmcore.evaluate.settings import EvalConfig
from cmcore.evaluate.suite import Reference
from cmcore.pipeline.common import Setup, load
from cmcore.pipeline.progress import Emit, listener
from cmcore.train.precision import choose_matrix_units

# Folders of the references in other features, where their weights are.
INCEPTION = "inception"
DINOV2 = "dinov2"


def job(compute: ComputeConfig, config: EvalConfig, workload: str, data: Path, out: Path, emit: Emit) -> None:
    """Train the extractor and store the reference; with weights of Inception or DINOv2, store theirs as well."""
    del emit
    device = pick_device(compute)
    choose_matrix_units("fp32")  # features are measurements
    images = images_of(data, config.decoder, device)
    test = images_of(data / TEST, config.decoder, device) if (data / TEST).is_dir() else None
    inception = load_inception(config.inception, device).extractor
    dinov2 = load_dinov2(config.dinov2, device)
    with replacing(out) as folder:
        reference(images, config, workload, folder, device, test, reconstructions_of(data, device))
        save_decoding(images, folder)
        if inception is not None and config.reference_npz:
            store_published(Path(config.reference_npz), inception.dim, folder / INCEPTION)
        elif inception is not None:
            store_features(images, inception, config, folder / INCEPTION, device, test)
        if dinov2 is not None:
            store_features(images, dinov2, config, folder / DINOV2, device, test)


def load_references(folder: Path, config: EvalConfig, device: str) -> tuple[list[Reference], str]:
    """What samples are measured against: the reference in every feature space that there is, and why there is no FID.

    Args:
        folder: of the references.
        config: of the evaluation; it names the weights of Inception and DINOv2.
        device: of the extractors.
    """
    references = [load_reference(folder, device=device)]
    inception, why_not = load_inception(config.inception, device)
    for name, extractor in ((INCEPTION, inception), (DINOV2, load_dinov2(config.dinov2, device))):
        if extractor is not None:
            references.append(load_reference(folder / name, extractor, references[0].digest))
    return references, why_not


def compute(setup: Setup, replicate: int = 0) -> None:
    """Write the reference of the workload, of which there is one."""
    assert replicate == 0
    config, folders, compute = setup.project.sections.eval, setup.folders, setup.compute
    folders.require([folders.manifest])
    with listener("reference", "img") as listen:
        execute(compute, job, compute, config, folders.workload, folders.data, folders.reference, progress=listen)


def write(setup: Setup, made: Sequence[None]) -> list[Path]:
    """Nothing is left to write, and no work file becomes superfluous."""
    del setup, made
    return []


def main() -> None:
    """Write the reference of the workload."""
    compute(load())
