"""`cmlab ship-extractor`: the active workload's classifier, trained anew, among the files of the project."""

from pathlib import Path

from cmcore.data.images import open_data
from cmcore.edge.autoencoder import open_images
from cmcore.evaluate.classifier import train_classifier
from cmcore.evaluate.shipped import shipped_file
from cmcore.pipeline.common import load


def ship(root: Path) -> list[str]:
    """Train on the prepared data, on the CPU, and replace the shipped weights.

    Raises:
        DataError: the data are not prepared, or have no labels.
    """
    setup = load(root)
    folders, config = setup.folders, setup.project.sections.eval
    folders.require([folders.manifest])
    data = open_data(folders.data)
    images = open_images(folders.data, config.decoder, "cpu")
    extractor, accuracy = train_classifier(
        images.images, images.labels, config.reference, classes=data.classes, workload=folders.workload
    )
    extractor.save(shipped_file(folders.workload))
    return [f"{extractor.name}: held-out accuracy {accuracy['held_out']:.1%}; distances in its features are new ones"]
