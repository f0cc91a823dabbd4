"""Digests of files that parameters name: DVC compares parameters, and a path stays the same when what is there changes.

As dependencies of DVC these files would be read for every stage. Here a file is read again when its name, size or times
have changed, so that asking costs no more than listing a folder. It imports no torch.
"""

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from cmcore.assemble.project import RunEntry, Sections
from cmcore.atomic import write_atomic
from cmcore.config import join, merge
from cmcore.data.sources.espeak import library
from cmcore.data.sources.files import walk
from cmcore.errors import DataError

PINNED = ("digits", "cifar10")  # sources whose bytes are known


def named_files(sections: Sections) -> dict[str, dict[str, Path]]:
    """The files and folders that every stage reads beside its dependencies: by stage, then by the path of a parameter.

    Those whose checksum is a parameter, or known, are left out.
    """
    data, run_eval = sections.data, sections.eval
    found: dict[str, dict[str, str]] = {"prepare": {}}
    if data.source not in PINNED and not data.sha256:
        found["prepare"]["data.path"] = data.path
    if data.spoken:
        found["prepare"]["data.source"] = str(library() or "")
    if data.codec is not None and not data.codec.sha256:
        found["prepare"]["data.codec.path"] = data.codec.path
    if data.text is not None:
        found["prepare"]["data.text.path"] = data.text.path
    measured = {"eval.inception.path": run_eval.inception.path}
    if not run_eval.dinov2.sha256:
        measured["eval.dinov2.path"] = run_eval.dinov2.path
    if data.source == "latents":
        measured["eval.decoder.path"] = run_eval.decoder.path
    found["reference"] = {**measured, "eval.reference_npz": run_eval.reference_npz}
    for name, entry in sections.runs.items():
        trained = _of_run(sections, name, entry)
        found |= {f"train@{name}": trained, f"evaluate@{name}": measured, f"tune@{name}": {**trained, **measured}}
    return {stage: {key: Path(path) for key, path in files.items() if path} for stage, files in found.items()}


def _of_run(sections: Sections, name: str, entry: RunEntry) -> dict[str, str]:
    """LPIPS's trunk, unless the run asks for another distance, and public weights."""
    files: dict[str, str] = {}
    lpips = merge(sections.train, entry.train).get("lpips_weights")
    if isinstance(lpips, str) and entry.options.get("distance", "lpips") == "lpips":
        files["train.lpips_weights"] = lpips
    if entry.weights is not None and entry.weights.file and not entry.weights.sha256:
        files[join(join("runs", name), "weights.file")] = entry.weights.file
    return files


class Contents:
    """Digests of places, remembered in a file.

    Args:
        memory: the digest of every place beside the names, sizes and times that it had; damaged, it is forgotten.
    """

    def __init__(self, memory: Path) -> None:
        self._memory, self._asked = memory, dict[Path, str]()
        try:
            known = json.loads(memory.read_text(encoding="utf-8"))
            self._known = {str(key): [str(part) for part in value] for key, value in known.items()}
        except (OSError, ValueError, AttributeError, TypeError):
            self._known: dict[str, list[str]] = {}

    def digest(self, place: Path) -> str:
        """SHA-256 over the names and contents at and below a place, in hexadecimal digits; empty where nothing is.

        Raises:
            DataError: something cannot be read.
        """
        if not place.exists():
            return ""
        key, state = str(place.resolve()), _digest_of(_described(place))
        if self._known.get(key, [""])[0] != state:
            self._known[key] = [state, _digest_of(_read(place))]
            write_atomic(self._memory, json.dumps(self._known, indent=1, sort_keys=True).encode())
        return self._known[key][1]


def digests(files: Mapping[str, Path], contents: Contents, before: Mapping[str, Any]) -> dict[str, str]:
    """The digests of files by parameter; of an absent one that of before, as results outlive their sources."""
    return {key: contents.digest(path) or str(before.get(key, "")) for key, path in files.items()}


def _digest_of(parts: Iterator[bytes]) -> str:
    total = hashlib.sha256()
    for part in parts:
        total.update(part)
    return total.hexdigest()


def _listed(place: Path) -> Iterator[tuple[bytes, Path]]:
    """A file itself, without its name; the files below a folder by their names, which end with a zero byte."""
    if not place.is_dir():
        yield b"", place
        return
    for name, found in walk(place):
        yield f"{name}\0".encode("utf-8", "surrogateescape"), Path(found.path)


def _described(place: Path) -> Iterator[bytes]:
    for name, path in _listed(place):
        try:
            about = path.stat()
        except (OSError, RuntimeError):  # a link to nothing, or to itself
            about = path.lstat()
        yield name + f"{about.st_mode} {about.st_size} {about.st_mtime_ns} {about.st_ctime_ns}\n".encode()


def _read(place: Path) -> Iterator[bytes]:
    """What is no file, such as a link to a folder, is there by its name; a source that cannot use it says so."""
    for name, path in _listed(place):
        yield name
        try:
            if path.is_file():
                with path.open("rb") as file:
                    yield hashlib.file_digest(file, "sha256").digest()
        except OSError as error:
            raise DataError(f"{path}: cannot be read ({error.strerror or os.strerror(error.errno or 0)})") from error
