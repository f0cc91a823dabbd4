"""Test images that are split off: the same share of every class, the same ones every time, and none lost."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cmcore.config import read
from cmcore.data.images import ImageData, LatentData, open_data
from cmcore.data.settings import DataConfig
from cmcore.data.sources.prepare import prepare
from cmcore.errors import DataError


def digits(**fields: object) -> DataConfig:
    return read(DataConfig, {"source": "digits", **fields}, "data")


def rows(data: ImageData) -> set[bytes]:
    return {image.tobytes() for image in data.images}


def test_a_share_of_every_class_is_held_out(tmp_path: Path):
    prepare(digits(), tmp_path / "all")
    manifest = prepare(digits(test=0.1), tmp_path / "out")
    whole, train, test = (ImageData.open(tmp_path / name) for name in ("all", "out", "out/test"))
    assert manifest == train.manifest
    counts = np.array(whole.manifest["class_counts"])
    assert test.manifest["class_counts"] == [round(0.1 * n) for n in counts]
    assert (np.array(train.manifest["class_counts"]) + test.manifest["class_counts"]).tolist() == counts.tolist()
    assert rows(train) | rows(test) == rows(whole)
    assert not rows(train) & rows(test)
    assert len({whole.digest, train.digest, test.digest}) == 3


def test_rows_keep_their_order_and_their_labels(tmp_path: Path):
    prepare(digits(), tmp_path / "all")
    prepare(digits(test=0.3), tmp_path / "out")
    whole, train, test = (ImageData.open(tmp_path / name) for name in ("all", "out", "out/test"))
    place = {image.tobytes(): row for row, image in enumerate(whole.images)}
    for part in (train, test):
        order = [place[image.tobytes()] for image in part.images]
        assert order == sorted(order)
        assert np.array_equal(part.labels, whole.labels[order])
    assert train.manifest["mean"] == pytest.approx((np.asarray(train.images) / 127.5 - 1).mean(), abs=1e-9)


def test_the_same_images_are_held_out_every_time(tmp_path: Path):
    for name in ("one", "two"):
        prepare(digits(test=0.1), tmp_path / name)
    assert ImageData.open(tmp_path / "one/test").digest == ImageData.open(tmp_path / "two/test").digest
    prepare(digits(test=0.2), tmp_path / "more")
    assert rows(ImageData.open(tmp_path / "one/test")) < rows(ImageData.open(tmp_path / "more/test"))


def test_without_a_share_nothing_changes(tmp_path: Path):
    prepare(digits(), tmp_path / "out")
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"images.npy", "labels.npy", "manifest.json"}
    assert ImageData.open(tmp_path / "out").digest.startswith("c8bc89e0190808c2"), "as it always was"


def test_pictures_and_latents_are_split_too(tmp_path: Path):
    rng = np.random.default_rng(0)
    for label in ("cat", "dog"):
        (tmp_path / "pictures" / label).mkdir(parents=True)
        (tmp_path / "latents" / label).mkdir(parents=True)
        for index in range(10):
            pixels = rng.integers(0, 256, (4, 4, 3)).astype(np.uint8)
            Image.fromarray(pixels).save(tmp_path / "pictures" / label / f"{index}.png")
            np.save(tmp_path / "latents" / label / f"{index}.npy", rng.uniform(0, 1, (8, 4, 4)).astype(np.float32))
    shape = {"resolution": 4, "test": 0.2}
    pictures = {"source": "folder", "path": str(tmp_path / "pictures"), "channels": 3, **shape}
    latents = {"source": "latents", "path": str(tmp_path / "latents"), "channels": 4, **shape}
    prepare(read(DataConfig, pictures, "data"), tmp_path / "p")
    prepare(read(DataConfig, latents, "data"), tmp_path / "l")
    assert ImageData.open(tmp_path / "p" / "test").manifest["class_counts"] == [2, 2]
    kept = open_data(tmp_path / "l")
    assert isinstance(kept, LatentData)
    assert (len(kept), len(open_data(tmp_path / "l" / "test"))) == (16, 4)


@pytest.mark.parametrize("share", [0.0001, 0.9999])
def test_a_share_that_leaves_one_side_empty_is_refused(tmp_path: Path, share: float):
    with pytest.raises(DataError, match=r"data\.test: expected a share that leaves training and test images of 1797"):
        prepare(digits(test=share), tmp_path / "out")
    assert not (tmp_path / "out").exists()
