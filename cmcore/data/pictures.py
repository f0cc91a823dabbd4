"""Image files in a folder, a zip or a tar, with labels by folder or by EDM's dataset.json.

Rows are in the sorted order of the names, whatever order the disk or the archive has, so a data set has one digest.
"""

import itertools
import json
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path, PurePosixPath

import numpy as np

from cmcore.data.decode import decode_all
from cmcore.data.errors import DataError
from cmcore.data.files import entries
from cmcore.data.pool import cores, ordered
from cmcore.data.settings import DataConfig
from cmcore.data.source import Block, Source, numbered

LABEL_FILE = "dataset.json"  # EDM's dataset tool writes it at the root
LABEL_LIMIT = 2**20
SOME, SOME_BYTES = 256, 2**22  # files that are decoded as one task
FEW = 4096  # files that are decoded before other processes would have started


def pictures(config: DataConfig) -> Source:
    """The images below the config's place.

    Raises:
        DataError: there are none, a name stands twice, or labels and images do not belong together.
    """
    path = Path(config.place)
    names, labels, class_names = list_files(path, config.subfolder)
    row_of = {name: row for row, name in enumerate(names)}
    decode = partial(decode_all, channels=config.channels, resolution=config.resolution, resize=config.resize)

    def blocks() -> Iterator[Block]:
        rows, files = itertools.tee(_groups(path, config.subfolder, row_of))
        images = ordered(decode, (group for _, group in files), cores() if len(names) > FEW else 1)
        for (row, _), decoded in zip(rows, images, strict=True):
            yield Block(row, decoded)

    return Source(labels, class_names, blocks)


def list_files(path: Path, subfolder: str) -> tuple[list[str], np.ndarray, tuple[str, ...]]:
    """The sorted names of the files below the sub-folder, their labels (N,) and the names of the classes."""
    names, described = [], None
    for entry in entries(path, subfolder):
        if entry.name == LABEL_FILE:
            described = entry.read()
        else:
            names.append(entry.name)
    if not names:
        raise DataError(f"{path}: expected images below {subfolder or 'it'!r}, but there is no file")
    names.sort()
    for first, second in itertools.pairwise(names):
        if first == second:
            raise DataError(f"{path}: {first} stands twice in it")
    if described is not None:
        return names, *labels_of(names, described, f"{path}: {LABEL_FILE}")
    return names, *classes_of(names, str(path))


def _groups(path: Path, subfolder: str, row_of: dict[str, int]) -> Iterator[tuple[list[int], list[tuple[str, bytes]]]]:
    """Rows and named contents, so many at a time that handing them to another process costs little."""
    rows: list[int] = []
    files: list[tuple[str, bytes]] = []
    size = 0
    for entry in entries(path, subfolder):
        if entry.name == LABEL_FILE:
            continue
        if entry.name not in row_of:
            raise DataError(f"{path}: {entry.name} appeared while the images were being read")
        data = entry.read()
        rows.append(row_of[entry.name])
        files.append((f"{path}: {entry.name}", data))
        size += len(data)
        if len(files) == SOME or size >= SOME_BYTES:
            yield rows, files
            rows, files, size = [], [], 0
    if files:
        yield rows, files


def labels_of(names: Sequence[str], content: bytes, where: str) -> tuple[np.ndarray, tuple[str, ...]]:
    """Labels (N,) and class names from EDM's dataset.json: {"labels": [["00000/img00000000.png", 6], ...]} or null.

    Raises:
        DataError: it is no such file, or an image has no label.
    """
    try:
        pairs = json.loads(content)["labels"]
        label_of = {name: label for name, label in pairs or ()}
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise DataError(f'{where}: expected {{"labels": [[name, number], ...]}} ({error!r})') from error
    if not label_of:
        return np.zeros(len(names), np.int64), ()
    for name in names:
        label = label_of.get(name)
        if type(label) is not int or not 0 <= label < LABEL_LIMIT:
            raise DataError(f"{where}: expected a whole number from 0 on as the label of {name}, got {label!r}")
    labels = np.array([label_of[name] for name in names], np.int64)
    return labels, numbered(labels)


def classes_of(names: Sequence[str], where: str) -> tuple[np.ndarray, tuple[str, ...]]:
    """Labels (N,) and class names from paths: the class is the folder below the folder that all images share.

    Images without class folders get label 0 and no class names.

    Raises:
        DataError: some images lie in class folders and some beside them.
    """
    folders = [PurePosixPath(name).parts[:-1] for name in names]
    depth = 0
    while all(len(f) > depth and f[depth] == folders[0][depth] for f in folders):
        depth += 1
    bare = [name for name, folder in zip(names, folders, strict=True) if len(folder) == depth]
    if len(bare) == len(names):
        return np.zeros(len(names), np.int64), ()
    if bare:
        raise DataError(
            f"{where}: {bare[0]} lies beside the class folders; expected all images in them, or no such folder"
        )
    found = sorted({folder[depth] for folder in folders})
    index = {name: k for k, name in enumerate(found)}
    return np.array([index[folder[depth]] for folder in folders], np.int64), tuple(found)
