"""The sources by kind, with the readers of the two that come as arrays."""

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from cmcore.data.settings import DataConfig
from cmcore.data.sources.arrays import read_arrays
from cmcore.data.sources.cifar10 import BYTES, SHA256, URL, cifar10
from cmcore.data.sources.decode import fit
from cmcore.data.sources.download import Progress, download
from cmcore.data.sources.fashion_mnist import fashion_mnist
from cmcore.data.sources.latents import latents
from cmcore.data.sources.pictures import pictures
from cmcore.data.sources.shapes import shapes
from cmcore.data.sources.source import Block, Source, dense
from cmcore.data.sources.speech import speech
from cmcore.errors import DataError

KINDS = {
    "folder": "folder",
    "cifar10": "file",
    "fashion-mnist": "folder",
    "archive": "file",
    "array": "file",
    "latents": "folder or file",
    "speech": "folder or file",
}
HINTS = {
    "cifar10": f"; it comes from {URL}, by hand or with `data.download: true`",
    "fashion-mnist": "; Debian has it: apt-get install dataset-fashion-mnist",
}
SOME = 1024  # images that are resized at a time


def open_source(config: DataConfig, progress: Progress | None = None) -> Source:
    """List the images of a source.

    Args:
        config: the source.
        progress: called with (bytes, bytes in all) of a download.

    Raises:
        DataError: the source is missing, damaged, empty, or not what its checksum says.
    """
    if config.source == "digits":
        return _digits()
    if config.source == "shapes":
        return shapes(config)
    if config.spoken:
        return speech(config)
    path, sha256 = Path(config.place), config.sha256
    if config.source == "cifar10":
        sha256 = sha256 or SHA256
        if config.download:
            download(URL, path, sha256, BYTES, progress)
    kind = KINDS[config.source]
    if not (("folder" in kind and path.is_dir()) or ("file" in kind and path.is_file())):
        hint = HINTS.get(config.source, "")
        raise DataError(f"{path}: expected a {kind}, but there is none; see `data.path` in the parameters{hint}")
    if sha256 and path.is_dir():
        raise DataError(f"{path}: expected a file, as data.sha256 is given, got a folder")
    if sha256:
        _check_sha256(path, sha256)
    readers = {
        "array": _array,
        "cifar10": cifar10,
        "fashion-mnist": fashion_mnist,
        "latents": latents,
        "speech": speech,
    }
    return readers.get(config.source, pictures)(config)


def _check_sha256(path: Path, expected: str) -> None:
    with path.open("rb") as file:
        got = hashlib.file_digest(file, "sha256").hexdigest()
    if got != expected:
        raise DataError(f"{path}: expected sha256 {expected}, got {got}; see `data.sha256` in the parameters")


def _digits() -> Source:
    try:
        from sklearn.datasets import load_digits  # a heavy import that no other source needs
    except ImportError as error:
        raise DataError(f"digits: expected scikit-learn, which holds them, to be installed ({error})") from error
    digits: Any = load_digits()
    images = np.round(digits.images * (255 / 16)).astype(np.uint8)[:, None]  # pixel values are 0..16
    names = tuple(str(name) for name in digits.target_names)
    return Source(digits.target.astype(np.int64), names, lambda: iter([Block(range(len(images)), images)]))


def _array(config: DataConfig) -> Source:
    images, labels = read_arrays(Path(config.place), config.channels)

    def blocks() -> Iterator[Block]:
        for start in range(0, len(images), SOME):
            some = [fit(image, config.resolution, config.resize) for image in images[start : start + SOME]]
            yield Block(range(start, start + len(some)), np.stack(some))

    labels, names = (np.zeros(len(images), np.int64), ()) if labels is None else dense(labels)
    return Source(labels, names, blocks)
