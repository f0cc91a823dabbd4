"""`cmlab ship-extractor`: the active workload's classifier, trained anew, and the moments of its features."""

from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

from cmcore.data.images import open_data
from cmcore.edge.autoencoder import images_of
from cmcore.evaluate.classifier import train_classifier
from cmcore.evaluate.features import FeatureExtractor
from cmcore.evaluate.images import ImageArray
from cmcore.evaluate.moments import Moments
from cmcore.layers.classifier import moments_file, shipped_file
from cmcore.pipeline.common import load

BATCH = 1000  # images at once


def ship(root: Path) -> list[str]:
    """Train on the prepared data, on the CPU, and replace the shipped weights.

    Raises:
        DataError: the data are not prepared, or have no labels.
    """
    setup = load(root)
    folders, config = setup.folders, setup.project.sections.eval
    folders.require([folders.manifest])
    data = open_data(folders.data)
    images = images_of(folders.data, config.decoder, "cpu")
    extractor, accuracy = train_classifier(
        images.images, images.labels, config.reference, classes=data.classes, workload=folders.workload
    )
    extractor.save(shipped_file(folders.workload))
    save_moments(extractor, images.images, moments_file(folders.workload))
    return [f"{extractor.name}: held-out accuracy {accuracy['held_out']:.1%}; distances in its features are new ones"]


def save_moments(extractor: FeatureExtractor, images: ImageArray, path: Path) -> None:
    """Write mean and covariance of the features of all images."""
    rows = range(0, len(images), BATCH)
    moments = Moments.stream(extractor(torch.from_numpy(np.array(images[at : at + BATCH]))) for at in rows)
    save_file({"mean": moments.mean, "cov": moments.cov}, path)
