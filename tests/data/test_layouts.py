"""EDM's dataset layout, ADM's resizing, many cores at once, and large rows at random places."""

import json
from functools import partial
from pathlib import Path

import numpy as np
import psutil
import pytest
from pictures_on_disk import FILES, ORDER, config, png, refused, write_folder, write_tar, write_zip
from PIL import Image
from pool_task import halved

from cmcore.data import rows
from cmcore.data.images import ImageData
from cmcore.data.sources import pictures
from cmcore.data.sources.decode import decode, decode_all, fit
from cmcore.data.sources.pool import ordered
from cmcore.data.sources.prepare import prepare
from cmcore.errors import DataError

LABELLED = {f"0000{k // 2}/img0000000{k}.png": png(k) for k in (3, 0, 2, 1)}
LABELS = {name: label for name, label in zip(sorted(LABELLED), (7, 0, 7, 3), strict=True)}


def described(labels: object) -> dict[str, bytes]:
    return LABELLED | {"dataset.json": json.dumps({"labels": labels}).encode()}


@pytest.mark.parametrize("kind", ["folder", "zip", "tar"])
def test_labels_come_from_edms_dataset_json(tmp_path, kind):
    content = {f"deep/{name}": data for name, data in described(list(map(list, LABELS.items()))).items()}
    write = {"folder": write_folder, "zip": write_zip, "tar": write_tar}[kind]
    source = config("folder" if kind == "folder" else "archive", write(tmp_path / "in", content), subfolder="deep")
    manifest = prepare(source, tmp_path / "out")
    data = ImageData.open(tmp_path / "out")
    assert data.labels.tolist() == [2, 0, 2, 1]  # dense; the names are the numbers in the file
    assert (manifest["classes"], manifest["class_names"]) == (3, ["0", "3", "7"])
    for row, name in enumerate(sorted(LABELLED)):
        np.testing.assert_array_equal(data.images[row], decode(LABELLED[name], 3, name=name))


def test_without_labels_the_numbered_folders_are_no_classes(tmp_path):
    manifest = prepare(config("archive", write_zip(tmp_path / "in.zip", described(None))), tmp_path / "out")
    assert (manifest["classes"], ImageData.open(tmp_path / "out").labels.tolist()) == (0, [0] * 4)


WRONG_LABELS = {
    "one is missing": [list(pair) for pair in LABELS.items()][1:],
    "a vector": [[name, [0.5, 0.5]] for name in LABELS],
    "a fraction": [[name, 0.5] for name in LABELS],
    "true": [[name, True] for name in LABELS],
    "negative": [[name, -1] for name in LABELS],
    "huge": [[name, 2**40] for name in LABELS],
    "no pairs": [[name] for name in LABELS],
    "a list as a name": [[["x"], 1]],
    "a number": 5,
}


@pytest.mark.parametrize("kind", WRONG_LABELS)
def test_wrong_labels_are_refused(tmp_path, kind):
    path = write_zip(tmp_path / "in.zip", described(WRONG_LABELS[kind]))
    refused(config("archive", path), tmp_path / "w" / "out", r"in\.zip: dataset\.json: expected")


@pytest.mark.parametrize("content", [b"", b"[", b"[]", b"{}", b"\xff", b"[" * 100_000])
def test_what_is_no_dataset_json_is_refused(tmp_path, content):
    path = write_zip(tmp_path / "in.zip", LABELLED | {"dataset.json": content})
    refused(config("archive", path), tmp_path / "w" / "out", r"in\.zip: dataset\.json: expected")


@pytest.mark.parametrize("size", [(500, 375), (64, 64), (33, 200), (16, 16), (129, 128)])
def test_adm_halves_then_shrinks_then_crops(size):
    """The steps one by one, on a picture of Pillow's."""
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))
    got = fit(np.asarray(image).transpose(2, 0, 1), 32, "adm")
    while min(image.size) // 2 >= 32:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    scale = 32 / min(image.size)
    if image.size != (32, 32):
        image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC)
    left, top = (image.width - 32) // 2, (image.height - 32) // 2
    np.testing.assert_array_equal(got, np.asarray(image.crop((left, top, left + 32, top + 32))).transpose(2, 0, 1))


def test_adm_differs_from_the_default(tmp_path):
    path = write_folder(tmp_path / "in", {"1.png": png(1, (20, 30))})
    digests = {prepare(config("folder", path, resize=way), tmp_path / "out")["sha256"] for way in ("lanczos", "adm")}
    assert len(digests) == 2


def test_many_cores_give_the_bytes_of_one(tmp_path, monkeypatch):
    content = FILES | {f"cat/x{k}.png": png(k, (5 + k, 9)) for k in range(20)}
    digests = set()
    for workers in (1, 3):
        monkeypatch.setattr(pictures, "FEW", 0)
        monkeypatch.setattr(pictures, "SOME", 2)
        monkeypatch.setattr(pictures, "cores", lambda count=workers: count)
        for source, path in (
            ("archive", write_zip(tmp_path / "in.zip", content)),
            ("archive", write_tar(tmp_path / "in.tar.xz", content)),
            ("folder", write_folder(tmp_path / "in", content)),
        ):
            digests.add(prepare(config(source, path), tmp_path / "out")["sha256"])
    assert len(digests) == 1
    assert ORDER[0] in content


def test_a_wrong_image_stops_all_cores(tmp_path, monkeypatch):
    monkeypatch.setattr(pictures, "FEW", 0)
    monkeypatch.setattr(pictures, "SOME", 1)
    monkeypatch.setattr(pictures, "cores", lambda: 2)
    content = {f"{k}.png": png(k) if k != 5 else b"nonsense" for k in range(9)}
    refused(
        config("archive", write_zip(tmp_path / "in.zip", content)), tmp_path / "w" / "out", r"5\.png: cannot be read"
    )
    assert not psutil.Process().children(recursive=True) or not _workers()


def _workers() -> list[psutil.Process]:
    children = psutil.Process().children(recursive=True)
    return [child for child in children if "spawn_main" in " ".join(child.cmdline())]


def test_results_come_in_the_order_of_the_tasks():
    assert list(ordered(halved, range(0, 40, 2), 3)) == list(range(20))
    assert list(ordered(halved, [], 3)) == []
    assert list(ordered(halved, [2], 3)) == [1]
    with pytest.raises(DataError, match="7 is odd"):
        list(ordered(halved, [2, 4, 7, 9, 2], 2))
    first = ordered(halved, iter(range(0, 10**9, 2)), 2)  # tasks are taken as they are needed
    assert [next(first), next(first)] == [0, 1]
    first.close()
    assert _workers() == []


def test_a_killed_worker_is_an_error():
    with pytest.raises(DataError, match="died"):
        list(ordered(halved, [2, -2, 2, 2, 2], 2))
    assert _workers() == []


def test_decoding_can_be_sent_to_another_process():
    task = partial(decode_all, channels=3, resolution=4, resize="lanczos")
    files = [(name, FILES[name]) for name in ORDER]
    for got in ordered(task, [files, files], 2):
        np.testing.assert_array_equal(got, task(files))


def test_a_tar_that_does_not_fit_in_memory_is_read_twice(tmp_path, monkeypatch):
    path = write_tar(tmp_path / "in.tar.gz", mode="w:gz")
    before = prepare(config("archive", path), tmp_path / "out")
    monkeypatch.setattr("cmcore.data.sources.listing.HELD", 100)
    assert prepare(config("archive", path), tmp_path / "out") == before


def test_large_rows_are_those_of_the_map(tmp_path):
    array = np.random.default_rng(0).integers(0, 256, (20, 3, 128, 128), dtype=np.uint8)
    np.save(tmp_path / "x.npy", array)
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    assert mapped[:1].nbytes >= rows.LARGE
    index = np.array([3, 19, 0, 3, *range(20)])
    np.testing.assert_array_equal(rows.take(mapped, index), array[index])
    for wrong in ([0, 20], [-1, 3]):
        with pytest.raises(IndexError, match="expected rows from 0 to 19"):
            rows.take(mapped, np.array(wrong))
    with Path(tmp_path / "x.npy").open("r+b") as file:
        file.truncate(100_000)
    with pytest.raises(OSError, match="ends before row"):
        rows.take(mapped, index)


@pytest.mark.parametrize("given", [[1, 2, 1, 2], [5, 0, 2**19, 5], [0, 1, 2, 1]])
def test_labels_of_an_array_are_made_dense_and_the_numbers_kept(tmp_path, given):
    images = np.random.default_rng(0).integers(0, 256, (4, 4, 4, 3), np.uint8)
    np.savez(tmp_path / "in.npz", images=images, labels=np.array(given))
    manifest = prepare(config("array", tmp_path / "in.npz"), tmp_path / "out")
    labels = ImageData.open(tmp_path / "out").labels.tolist()
    assert [int(manifest["class_names"][k]) for k in labels] == given
    assert sorted(set(labels)) == list(range(manifest["classes"]))
    assert 0 not in manifest["class_counts"]


def test_another_number_of_classes_than_expected_is_refused(tmp_path):
    path = write_zip(tmp_path / "in.zip", described(list(map(list, LABELS.items()))))
    with pytest.raises(DataError, match=r"in\.zip: expected data\.classes = 8 classes, got 3 with images"):
        prepare(config("archive", path, classes=8), tmp_path / "out")
    assert prepare(config("archive", path, classes=3), tmp_path / "out")["classes"] == 3
