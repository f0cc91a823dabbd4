"""The files of a folder, a zip or a tar as rows, with labels by folder or by EDM's dataset.json, and with captions.

Rows are sorted by name, not in the order of the disk or the archive, so a data set has one digest.
"""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np

from cmcore import limits
from cmcore.bounded import parse_json
from cmcore.data.sources.files import Entry, entries, is_tar
from cmcore.data.sources.source import dense
from cmcore.diffusion.words import split_words
from cmcore.errors import DataError, reason

LABEL_FILE = "dataset.json"  # EDM's dataset tool writes it at the root
CAPTION_FILE = "captions.jsonl"  # at the root, a line for each image: {"file_name": "a.png", "text": "a red circle"}
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
    captions: tuple[str, ...] = ()  # of every row, or none at all

    def files(self) -> Iterator[tuple[int, str, bytes]]:
        """Row, name and content of every file.

        Raises:
            DataError: a file was not listed.
        """
        for entry in self.held or entries(self.path, self.subfolder):
            if entry.name in (LABEL_FILE, CAPTION_FILE):
                continue
            if entry.name not in self.row_of:
                raise DataError(f"{self.path}: {entry.name} appeared while the files were being read")
            yield self.row_of[entry.name], f"{self.path}: {entry.name}", entry.read()


def list_files(path: Path, subfolder: str) -> Listing:
    """The files below the sub-folder. Listing a tar reads all of it, so a small one is kept in memory."""
    names, held, described = [], [], dict[str, bytes]()
    room = HELD if is_tar(path) else 0
    for entry in entries(path, subfolder):
        if entry.name in (LABEL_FILE, CAPTION_FILE):
            described[entry.name] = entry.read()
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
    data, where = None, f"{path}: {LABEL_FILE}"
    if LABEL_FILE in described:
        text = limits.CAPTION_BYTES if b'"captions"' in described[LABEL_FILE] else 0
        data = parse_json(described[LABEL_FILE], where, 4096 + (limits.LABEL_BYTES + text) * len(names))
    if LABEL_FILE not in described:
        labels, class_names = classes_of(names, str(path))
    else:
        labels, class_names = labels_of(names, data, where)
    captions = ()
    if CAPTION_FILE in described:
        captions = captions_of(names, described[CAPTION_FILE], f"{path}: {CAPTION_FILE}")
    elif isinstance(data, dict) and data.get("captions"):
        captions = _checked(names, _pairs(data["captions"], where), where)
    row_of = {name: row for row, name in enumerate(names)}
    return Listing(path, subfolder, row_of, labels, class_names, held if room > 0 else [], captions)


def labels_of(names: Sequence[str], data: Any, where: str) -> tuple[np.ndarray, tuple[str, ...]]:
    """Labels (N,) and class names from the data of EDM's dataset.json: {"labels": [["a.png", 6], ...]} or null.

    Labels are made dense; the names are the numbers in the file.

    Raises:
        DataError: it is no such file, or an image has no label.
    """
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


def captions_of(names: Sequence[str], content: bytes, where: str) -> tuple[str, ...]:
    """Captions (N,) from the lines of captions.jsonl, which are {"file_name": "a.png", "text": "a red circle"}.

    Raises:
        DataError: it is no such file, or an image has no caption, an empty one or a longer one than is read.
    """
    found: dict[str, Any] = {}
    for number, line in enumerate(content.splitlines(), start=1):
        if not line.strip():
            continue
        data = parse_json(line, f"{where}: line {number}", limits.CAPTION_BYTES)
        if not (isinstance(data, dict) and isinstance(data.get("file_name"), str) and "text" in data):
            raise DataError(f'{where}: line {number}: expected {{"file_name": "a.png", "text": "a red circle"}}')
        if data["file_name"] in found:
            raise DataError(f"{where}: line {number}: {data['file_name']} has a caption already")
        found[data["file_name"]] = data["text"]
    return _checked(names, found, where)


def _pairs(pairs: Any, where: str) -> dict[str, Any]:
    """The captions of dataset.json: [["a.png", "a red circle"], ...]."""
    try:
        return {name: text for name, text in pairs}
    except (ValueError, TypeError) as error:
        raise DataError(f'{where}: expected {{"captions": [[name, text], ...]}} ({reason(error)})') from error


def _checked(names: Sequence[str], found: Mapping[str, Any], where: str) -> tuple[str, ...]:
    """The captions of the names, in their order; a DataError where one is missing, no text, empty or too long."""
    for name in names:
        if name not in found:
            raise DataError(f"{where}: expected a caption of every image, got none of {name}")
        text = found[name]
        if not isinstance(text, str):
            raise DataError(f"{where}: expected text as the caption of {name}, got {text!r}")
        if not 1 <= (count := len(split_words(text))) <= limits.CAPTION_WORDS:
            raise DataError(
                f"{where}: expected 1 to {limits.CAPTION_WORDS} words as the caption of {name}, got {count}"
            )
    return tuple(found[name] for name in names)


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
