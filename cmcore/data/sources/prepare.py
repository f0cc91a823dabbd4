"""The prepare stage: any source -> one array, labels.npy and manifest.json, written atomically."""

import hashlib
import itertools
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from cmcore.atomic import replacing
from cmcore.config import plain
from cmcore.data.codec import Encoder
from cmcore.data.images import (
    ARRAYS,
    CAPTIONS,
    ENCODED,
    MANIFEST,
    NUMBERS,
    TEST,
    VECTORS,
    WORDS,
    read_manifest,
)  # fmt: skip
from cmcore.data.latent_space import normalisation
from cmcore.data.settings import OWN, DataConfig
from cmcore.data.sources.codec import train_codec
from cmcore.data.sources.open import open_source
from cmcore.data.sources.source import Block, Source
from cmcore.data.sources.statistics import NAMES, Latents, Pixels, Statistics
from cmcore.diffusion.words import Words
from cmcore.errors import DataError
from cmcore.limits import VOCABULARY
from cmcore.rng import generator

ENCODED_AT_ONCE = 256  # images
Progress = Callable[[int, int], None]


class EncodeText(Protocol):
    """A text encoder with a digest of all that it is."""

    @property
    def digest(self) -> str: ...

    def encode(self, captions: Sequence[str], /) -> np.ndarray:
        """Captions -> float32 (N, T, D)."""
        ...


class MakeEncoder(Protocol):
    """Training images uint8 (N, C, H, W) -> an encoder of them."""

    def __call__(self, images: np.ndarray, /, *, progress: Progress) -> Encoder: ...


def prepare(
    config: DataConfig, out: Path, progress: Progress | None = None, encoder: MakeEncoder | None = None,
    text: EncodeText | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Write the data set into the folder `out` and return its manifest.

    images.npy is uint8 (N, C, H, W), latents.npy holds means and standard deviations (N, 2C, H, W), labels.npy is int64
    (N,). Of a source with captions, words.npy is int64 (N, L), and the manifest has the vocabulary. Statistics are of
    pixels in [-1, 1], or of normalised latents. Equal sources give equal bytes everywhere. The test images of
    `config.test` are not among them: they stand in the folder `test` in `out`, in the same form.

    With `config.codec` latents.npy stands beside images.npy, and the codec beside both. The manifest is then that of
    the latents, with that of the images under `images`, and with the digest of the codec. On one kind of CPU equal
    images give equal bytes of all of it.

    With `text` the captions are encoded: encoded.npy is float32 (1 + M, T, D), of no caption and of the M different
    ones in captions.json, and text.npy the number of each image's, int64 (N, 1).

    Args:
        config: the source.
        out: a folder that is replaced as a whole, at the end.
        progress: called with (images done, images in all), before that with (bytes done, bytes in all) of a download,
            after it with those of the codec's training and of the encoding.
        encoder: makes the encoder for the training images, and tells its progress; by default one is trained.
        text: encodes the captions.

    Raises:
        DataError: an image is wrong; the message names the first. `out` is then unchanged.
    """
    source, progress = open_source(config, progress), progress or (lambda done, total: None)
    if config.classes and len(source.class_names) != config.classes:
        got = f"{len(source.class_names)} with images"
        raise DataError(f"{config.place or config.source}: expected data.classes = {config.classes} classes, got {got}")
    held_out = _held_out(source, config.test) if config.test != OWN else np.zeros(len(source.labels), np.bool_)
    own = open_source(replace(config, subfolder="test", test=0.0)) if config.test == OWN else None
    if own is not None and own.class_names != source.class_names:
        raise DataError(f"{config.place}: expected the test images to have the classes of the training images")
    if own is not None and bool(own.captions) != bool(source.captions):
        raise DataError(f"{config.place}: expected captions of training and of test images, or of neither")
    words = _words((*source.captions, *(own.captions if own else ())), config)
    try:
        with replacing(out) as folder:
            known = normalisation() if config.source == "latents" else None
            parts = [_Part(folder, source, ~held_out, config, words, known)]
            if held_out.any():
                parts.append(_Part(folder / TEST, source, held_out, config, words, known))
            _write(parts, source, progress)
            if own is not None:
                parts.append(_Part(folder / TEST, own, np.ones(len(own.labels), np.bool_), config, words))
                _write(parts[1:], own, progress)
            manifest, *_ = [part.finish() for part in parts]
            if config.codec is not None:
                manifest = _encode(parts, config, progress, encoder or partial(train_codec, config=config.codec))
            if text is not None:
                manifest = _add_text(parts, text, config)
    except OSError as error:
        raise DataError(f"{out}: cannot be written ({error})") from error
    return manifest


def _held_out(source: Source, share: float) -> np.ndarray:
    """The test images of a source, bool (N,): the same share of every class, at random under a fixed seed."""
    chosen = np.zeros(len(source.labels), np.bool_)
    for label in np.unique(source.labels) if share else ():
        rows = np.flatnonzero(source.labels == label)
        order = torch.randperm(len(rows), generator=generator("test images", int(label))).numpy()
        chosen[rows[order[: round(share * len(rows))]]] = True
    if share and (chosen.all() or not chosen.any()):
        raise DataError(
            f"data.test: expected a share that leaves training and test images of {len(chosen)}, got {share}"
        )
    return chosen


def _words(captions: Sequence[str], config: DataConfig) -> Words | None:
    """The words of captions, those of test images included; None where there are none."""
    if not captions:
        return None
    words = Words.of(captions)
    if len(words.vocabulary) > VOCABULARY:
        got = f"got {len(words.vocabulary)}"
        raise DataError(f"{config.place}: expected captions of at most {VOCABULARY} different words, {got}")
    return words


class _Part:
    """A prepared array in the writing, of some rows of a source, with its labels and manifest.

    A full disk would kill a process that writes to a memory map, so it is a plain file.
    """

    def __init__(
        self,
        folder: Path,
        source: Source,
        chosen: np.ndarray,
        config: DataConfig,
        words: Words | None = None,
        constants: Mapping[str, Any] | None = None,
    ) -> None:
        folder.mkdir(exist_ok=True)
        self.folder, self.source, self.chosen, self.words = folder, source, chosen, words
        self._labels = source.labels[chosen]
        self.captions = [source.captions[row] for row in np.flatnonzero(chosen)] if words else []
        self._place = np.where(chosen, np.cumsum(chosen) - 1, -1)  # of every row of the source
        latent = source.kind == "latents"
        self._shape = config.seen_shape if latent else (config.channels, config.resolution, config.resolution)
        self._stored = (2 * self._shape[0], *self._shape[1:]) if latent else self._shape
        self._seen: Statistics = Latents(self._shape[0], constants) if latent else Pixels(self._shape[0])
        self._dtype = np.dtype(config.precision if latent else np.uint8)
        self.path = folder / ARRAYS[source.kind]
        self._file = self.path.open("wb")
        header = {
            "descr": np.lib.format.dtype_to_descr(self._dtype),
            "fortran_order": False,
            "shape": (len(self._labels), *self._stored),
        }
        np.lib.format.write_array_header_1_0(self._file, header)
        self._start = self._file.tell()

    def add(self, block: Block) -> None:
        """Write those images of a block that belong here."""
        if block.images.shape != (len(block.rows), *self._stored) or block.images.dtype != self._dtype:
            got = f"{block.images.dtype} {block.images.shape}"
            raise DataError(
                f"images from {block.rows[0]} on: expected {self._dtype} {self._stored} each, got {got} in all"
            )
        place = self._place[np.asarray(block.rows)]
        images = block.images if (place >= 0).all() else block.images[place >= 0]
        if not len(images):
            return
        size = images[0].nbytes
        for row, some in _runs(place[place >= 0], images):
            self._file.seek(self._start + row * size)
            self._file.write(some.tobytes())
        self._seen.add(images)

    def close(self) -> None:
        """Close the array, with all of it on the disk."""
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()

    def finish(self, more: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Write labels and manifest, `more` in it, and return the latter."""
        labels = self.folder / "labels.npy"
        np.save(labels, self._labels)
        files = [self.path, labels]
        if self.words is not None:
            files.append(self.folder / WORDS)
            np.save(files[-1], np.array([self.words.encode(caption) for caption in self.captions], np.int64))
        sha256 = digest(*files, words=self.words)
        manifest = _manifest(self.source, self._labels, self._shape, self._seen.result(), sha256)
        if self.words is not None:
            manifest["words"] = {**plain(self.words), "sha256": self.words.digest}
        manifest |= more or {}
        (self.folder / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
        return manifest


def _encode(parts: Sequence[_Part], config: DataConfig, progress: Progress, make: MakeEncoder) -> dict[str, Any]:
    """Make an encoder for the images of the first part, and write the latents of all; the result is its manifest.

    The training images' latents are normalised to a mean of 0 and one deviation in every channel, or by the scale of
    the codec, and those of test images by the same constants.
    """
    assert config.codec is not None
    channels, scale = config.codec.channels, config.codec.scale
    known = normalisation([0.0] * channels, [1 / scale] * channels) if scale else None
    codec = make(np.load(parts[0].path, mmap_mode="r"), progress=progress)
    codec.save(parts[0].folder)
    first: dict[str, Any] = {}
    for part in parts:
        images, rows = np.load(part.path, mmap_mode="r"), np.flatnonzero(part.chosen)
        source = part.source._replace(kind="latents")
        latents = _Part(part.folder, source, part.chosen, config, part.words, first or known)
        try:
            for start in range(0, len(rows), ENCODED_AT_ONCE):
                some = slice(start, start + ENCODED_AT_ONCE)
                encoded = codec.encode(torch.from_numpy(np.array(images[some])))
                latents.add(Block(rows[some].tolist(), encoded.numpy().astype(config.precision, copy=False)))
                progress(min(some.stop, len(rows)), len(rows))
        finally:
            latents.close()
        whole = read_manifest(part.folder)
        own = {key: whole[key] for key in ("shape", *NAMES, "sha256")}
        manifest = latents.finish({"codec": {"kind": config.codec.kind, "digest": codec.digest}, ENCODED: own})
        first = first or manifest
    return first


def _add_text(parts: Sequence[_Part], text: EncodeText, config: DataConfig) -> dict[str, Any]:
    """Encode the captions of all parts, each different one once; the result is the manifest of the first part."""
    captions = sorted({caption for part in parts for caption in part.captions})
    if not captions:
        raise DataError(f"{config.place}: expected images with captions, which data.text encodes, got none")
    try:
        vectors = text.encode(["", *captions])
    except ValueError as error:
        raise DataError(f"{config.place}: {error}") from error
    numbers, folder = {caption: k for k, caption in enumerate(captions)}, parts[0].folder
    np.save(folder / VECTORS, vectors)
    (folder / CAPTIONS).write_text(json.dumps(captions, ensure_ascii=False) + "\n", encoding="utf-8")
    described = {"encoder": text.digest, "tokens": vectors.shape[1], "width": vectors.shape[2]}
    for part in parts:
        np.save(part.folder / NUMBERS, np.array([[numbers[caption]] for caption in part.captions], np.int64))
        manifest = read_manifest(part.folder)
        own = digest(part.folder / NUMBERS, folder / VECTORS, folder / CAPTIONS)
        known = hashlib.sha256(f"{manifest['sha256']}{own}{text.digest}".encode()).hexdigest()
        (part.folder / MANIFEST).write_text(
            json.dumps({**manifest, "sha256": known, "text": described}, indent=2) + "\n", encoding="utf-8"
        )
    return read_manifest(folder)


def _manifest(
    source: Source, labels: np.ndarray, shape: tuple[int, int, int], seen: dict[str, Any], sha256: str
) -> dict[str, Any]:
    classes = len(source.class_names)
    return {
        **({"kind": source.kind} if source.kind == "latents" else {}),
        "count": len(labels),
        "shape": list(shape),
        "classes": classes,
        "class_names": list(source.class_names),
        "class_counts": np.bincount(labels, minlength=classes).tolist() if classes else [],
        **source.about,
        **seen,
        "sha256": sha256,
    }


def _write(parts: Sequence[_Part], source: Source, progress: Progress) -> None:
    """Write the rows in the order of the source, each into its part."""
    count, done = len(source.labels), 0
    try:
        for block in source.blocks():
            for part in parts:
                part.add(block)
            done += len(block.rows)
            progress(done, count)
    finally:
        for part in parts:
            part.close()
    if done != count:
        raise DataError(f"expected {count} images, got {done}: the source changed while it was read")


def _runs(rows: np.ndarray, images: np.ndarray) -> list[tuple[int, np.ndarray]]:
    """The images of consecutive rows as one array each, for one write."""
    cuts = [0, *(np.flatnonzero(np.diff(rows) != 1) + 1).tolist(), len(rows)]
    return [(int(rows[low]), images[low:high]) for low, high in itertools.pairwise(cuts)]


def digest(*files: Path, words: Words | None = None) -> str:
    """sha256 over the bytes of the array, of labels.npy and of words.npy, then over the words that those rows are of.

    The files' shapes and types are included.
    """
    total = hashlib.sha256()
    for path in files:
        with path.open("rb") as file:
            while chunk := file.read(2**20):
                total.update(chunk)
    if words is not None:
        total.update(words.digest.encode())
    return total.hexdigest()
