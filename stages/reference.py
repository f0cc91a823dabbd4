"""data -> outputs/<workload>/reference: the feature extractor, and the real images as it sees them."""

from pathlib import Path

from cmcore.data.images import ImageData
from cmcore.data.replacing import replacing
from cmcore.edge.inception import load_inception
from cmcore.edge.ray_run import execute, pick_device
from cmcore.edge.settings import ComputeConfig
from cmcore.evaluate.settings import EvalConfig
from cmcore.evaluate.suite import reference, store_features
from stages.common import load
from stages.progress import Emit, listener

INCEPTION = "inception"  # folder of the Inception reference, where its weights are


def job(compute: ComputeConfig, config: EvalConfig, workload: str, data: Path, out: Path, emit: Emit) -> None:
    """Train the extractor and store the reference; with Inception weights, store theirs as well."""
    del emit
    images = ImageData.open(data)
    with replacing(out) as folder:
        reference(images, config, workload, folder)
        inception = load_inception(config.inception, pick_device(compute)).extractor
        if inception is not None:
            store_features(images, inception, config, folder / INCEPTION)


def main() -> None:
    """Write the reference of the workload."""
    setup = load()
    config, workload = setup.project.sections.eval, setup.project.workload
    with listener("reference", "img") as listen:
        places = (setup.folders.data, setup.folders.reference)
        execute(setup.compute, job, setup.compute, config, workload, *places, progress=listen)
