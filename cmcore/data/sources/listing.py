"""The files of a folder, a zip or a tar as rows, with labels by folder or by EDM's dataset.json.

Rows are sorted by name, not in the order of the disk or the archive, so a data set has one digest.
"""

import itertools
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np

from cmcore import limits
from cmcore.bounded import parse_json
from cmcore.data.sources.files import Entry, entries, is_tar
from cmcore.data.sources.source import dense
from cmcore.errors import DataError, reason

LABEL_FILE = "dataset.json"  # EDM's dataset tool writes it at the root
LABEL_LIMIT = 2**20
HELD = 2**26  # bytes of a tar's files that are kept


class Listing(NamedTuple):
    """The files of a data set: the row of each name, and labels (N,)."""

    path: Path
    subfolder: str
    row_of: dict[str, int]
    labels: np.ndarray
    class_names: tuple[str, ...]
    held: list[Entry]  # the files' contents if they are in memory, else empty

    def files(self) -> Iterator[tuple[int, str, bytes]]:
        """Row, name and content of every file.

        Raises:
            DataError: a file was not listed.
        """
        for entry in self.held or entries(self.path, self.subfolder):
            if entry.name == LABEL_FILE:
                continue
            if entry.name not in self.row_of:
                raise DataError(f"{self.path}: {entry.name} appeared while the files were being read")
            yield self.row_of[entry.name], f"{self.path}: {entry.name}", entry.read()


def list_files(path: Path, subfolder: str) -> Listing:
    """The files below the sub-folder. Listing a tar reads all of it, so a small one is kept in memory."""
    names, described, held = [], None, []
    room = HELD if is_tar(path) else 0
    for entry in entries(path, subfolder):
        if entry.name == LABEL_FILE:
            described = entry.read()
            continue
        names.append(entry.name)
        if room > 0:
            content = entry.read()
            room -= len(content)
            held.append(Entry(entry.name, partial(bytes, content)))
            if room <= 0:
                held.clear()
    if not names:
        raise DataError(f"{path}: expected images below {subfolder or 'it'!r}, but there is no file")
    names.sort()
    for first, second in itertools.pairwise(names):
        if first == second:
            raise DataError(f"{path}: {first} stands twice in it")
    if described is None:
        labels, class_names = classes_of(names, str(path))
    else:
        labels, class_names = labels_of(names, described, f"{path}: {LABEL_FILE}")
    row_of = {name: row for row, name in enumerate(names)}
    return Listing(path, subfolder, row_of, labels, class_names, held if room > 0 else [])


def labels_of(names: Sequence[str], content: bytes, where: str) -> tuple[np.ndarray, tuple[str, ...]]:
    """Labels (N,) and class names from EDM's dataset.json: {"labels": [["00000/img00000000.png", 6], ...]} or null.

    Labels are made dense; the names are the numbers in the file.

    Raises:
        DataError: it is no such file, or an image has no label.
    """
    data = parse_json(content, where, 4096 + limits.LABEL_BYTES * len(names))
    try:
        pairs = data["labels"]
        label_of = {name: label for name, label in pairs or ()}
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f'{where}: expected {{"labels": [[name, number], ...]}} ({reason(error)})') from error
    if not label_of:
        return np.zeros(len(names), np.int64), ()
    for name in names:
        label = label_of.get(name)
        if type(label) is not int or not 0 <= label < LABEL_LIMIT:
            raise DataError(f"{where}: expected a whole number from 0 on as the label of {name}, got {label!r}")
    return dense(np.array([label_of[name] for name in names], np.int64))


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
