"""Fashion-MNIST's idx files, generated here: read block by block, and refused where they are damaged or hostile."""

import gzip
import struct
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from cmcore import limits
from cmcore.config import ConfigError, read
from cmcore.data.images import ImageData
from cmcore.data.settings import DataConfig
from cmcore.data.sources import fashion_mnist as module
from cmcore.data.sources.open import open_source
from cmcore.data.sources.prepare import prepare
from cmcore.errors import DataError

Pack = Callable[[bytes], bytes]


def idx(array: np.ndarray) -> bytes:
    return struct.pack(f">{1 + array.ndim}I", 0x0800 + array.ndim, *array.shape) + array.tobytes()


def write(folder: Path, part: str, count: int, pack: Pack = gzip.compress) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(count)
    images = rng.integers(0, 256, (count, 28, 28)).astype(np.uint8)
    labels = np.arange(count, dtype=np.uint8) % 10
    end = ".gz" if pack is gzip.compress else ""
    folder.mkdir(exist_ok=True)
    (folder / f"{part}-images-idx3-ubyte{end}").write_bytes(pack(idx(images)))
    (folder / f"{part}-labels-idx1-ubyte{end}").write_bytes(pack(idx(labels)))
    return images, labels


def config(folder: Path, **fields: object) -> DataConfig:
    given = {"source": "fashion-mnist", "path": str(folder), "resolution": 28, "channels": 1, **fields}
    return read(DataConfig, given, "data")


@pytest.mark.parametrize("pack", [gzip.compress, bytes], ids=["gzip", "plain"])
def test_images_labels_and_the_test_split(tmp_path: Path, pack: Pack, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "SOME", 7)
    images, labels = write(tmp_path / "in", "train", 50, pack)
    test_images, test_labels = write(tmp_path / "in", "t10k", 20, pack)
    prepare(config(tmp_path / "in", test="own"), tmp_path / "out")
    train, test = ImageData.open(tmp_path / "out"), ImageData.open(tmp_path / "out" / "test")
    assert np.array_equal(train.images[:, 0], images)
    assert np.array_equal(train.labels, labels)
    assert np.array_equal(test.images[:, 0], test_images)
    assert np.array_equal(test.labels, test_labels)
    assert train.manifest["class_names"][9] == "Ankle boot"
    assert (train.classes, test.classes, test.manifest["count"]) == (10, 10, 20)
    prepare(config(tmp_path / "in"), tmp_path / "alone")
    assert not (tmp_path / "alone" / "test").exists()
    assert ImageData.open(tmp_path / "alone").digest == train.digest
    prepare(config(tmp_path / "in", subfolder="test"), tmp_path / "tested")
    assert ImageData.open(tmp_path / "tested").digest == test.digest


def test_a_missing_file_or_folder_is_named(tmp_path: Path):
    with pytest.raises(DataError, match=r"expected a folder, but there is none.*apt-get install dataset-fashion-mnist"):
        open_source(config(tmp_path / "no"))
    write(tmp_path / "in", "train", 20)
    with pytest.raises(DataError, match=r"expected t10k-images-idx3-ubyte or t10k-images-idx3-ubyte\.gz"):
        prepare(config(tmp_path / "in", test="own"), tmp_path / "out")
    assert not (tmp_path / "out").exists()


GOOD = idx(np.zeros((30, 28, 28), np.uint8))
BAD = {
    "empty": (b"", "expected an idx file, got 0 bytes"),
    "header": (GOOD[:10], "expected an idx file, got 10 bytes"),
    "magic": (b"\x00\x00\x0d\x03" + GOOD[4:], "unsigned bytes, got the header 00000d03"),
    "shape": (GOOD[:8] + struct.pack(">2I", 2**31, 28) + GOOD[16:], "expected an idx file of N x 28 x 28"),
    "count": (GOOD[:4] + struct.pack(">I", 29) + GOOD[8:], "expected 30 images, as many as labels, got 29"),
    "huge": (GOOD[:4] + struct.pack(">I", 2**32 - 1) + GOOD[8:], "decompression bomb"),
    "short": (GOOD[:-5], "ends 5 bytes before"),
    "long": (GOOD + b"x", "goes on after the end"),
}


@pytest.mark.parametrize("pack", [gzip.compress, bytes], ids=["gzip", "plain"])
@pytest.mark.parametrize("kind", BAD)
def test_damaged_and_hostile_files_are_refused(tmp_path: Path, kind: str, pack: Pack):
    write(tmp_path / "in", "train", 30, pack)
    content, message = BAD[kind]
    end = ".gz" if pack is gzip.compress else ""
    (tmp_path / "in" / f"train-images-idx3-ubyte{end}").write_bytes(pack(content))
    with pytest.raises(DataError, match=message):
        prepare(config(tmp_path / "in"), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("damage", ["cut", "checksum", "noise"])
def test_a_damaged_compression_is_refused(tmp_path: Path, damage: str):
    write(tmp_path / "in", "train", 30)
    path = tmp_path / "in" / "train-images-idx3-ubyte.gz"
    content = bytearray(path.read_bytes())
    if damage == "cut":
        content = content[: len(content) // 2]
    else:
        content[-6 if damage == "checksum" else 40] ^= 255
    path.write_bytes(bytes(content))
    with pytest.raises(DataError, match="cannot be read as an idx file"):
        prepare(config(tmp_path / "in"), tmp_path / "out")


def test_a_small_file_that_unpacks_to_much_takes_no_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(limits, "ZIP_BYTES", 2**20)
    write(tmp_path / "in", "train", 30)
    bomb = struct.pack(">2I", 0x0801, 2**24) + bytes(2**24)
    (tmp_path / "in" / "train-labels-idx1-ubyte.gz").write_bytes(gzip.compress(bomb))
    tracemalloc.start()
    try:
        with pytest.raises(DataError, match="decompression bomb"):
            open_source(config(tmp_path / "in"))
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()


def test_labels_of_other_classes_are_refused(tmp_path: Path):
    write(tmp_path / "in", "train", 30)
    path = tmp_path / "in" / "train-labels-idx1-ubyte.gz"
    path.write_bytes(gzip.compress(idx(np.full(30, 11, np.uint8))))
    with pytest.raises(DataError, match="expected labels from 0 to 9, got 11"):
        open_source(config(tmp_path / "in"))


@pytest.mark.parametrize(
    ("fields", "key"),
    [
        ({"resolution": 32}, "resolution"),
        ({"channels": 3}, "channels"),
        ({"subfolder": "t10k"}, "subfolder"),
        ({"download": True}, "download"),
        ({"sha256": "0" * 64}, "sha256"),
        ({"test": "own", "subfolder": "test"}, "test"),
        ({"test": 1.0}, "test"),
        ({"test": -0.1}, "test"),
        ({"test": "all"}, "test"),
    ],
)
def test_wrong_parameters_name_their_key(tmp_path: Path, fields: dict[str, object], key: str):
    with pytest.raises(ConfigError, match=rf"^data\.{key}: "):
        config(tmp_path, **fields)


def test_only_sources_with_test_images_have_their_own():
    with pytest.raises(ConfigError, match=r"^data\.test: expected a fraction"):
        read(DataConfig, {"source": "digits", "test": "own"}, "data")
