"""What is seen of a data set before there is a workload."""

import numpy as np
import photographs
import pytest

from cmcore.data.sources import survey as module
from cmcore.data.sources.survey import survey
from cmcore.errors import DataError


def test_photographs_of_two_classes(tmp_path):
    seen = survey(photographs.photographs(tmp_path))
    assert (seen.count, seen.classes, seen.class_names) == (100, 2, ("bars", "discs"))
    assert (seen.data.source, seen.data.channels, seen.data.background) == ("folder", 3, "")
    assert 40 <= seen.sides[0] < seen.sides[1] < seen.sides[2] < 72
    assert not seen.square
    assert (seen.decoded, seen.duplicates, seen.transparent) == (100, 0, 0)
    assert seen.images.shape == (100, 3, 64, 64)
    assert seen.at(16).shape == (100, 3, 16, 16)


def test_grey_images_that_are_stored_in_colour_are_grey(tmp_path):
    grey = np.random.default_rng(0).integers(0, 255, (20, 16, 16, 1))
    for index, image in enumerate(grey):
        photographs.save(np.repeat(image, 3, axis=2), tmp_path / f"{index}.png")
    seen = survey(tmp_path, resolution=16)
    assert seen.data.channels == 1
    assert np.array_equal(seen.images[:, 0], np.stack([grey[i, ..., 0] for i in sorted(range(20), key=str)]))
    assert seen.square
    assert seen.sides == (16, 16, 16)


def test_transparent_images_are_laid_over_white(tmp_path):
    seen = survey(photographs.icons(tmp_path, 20))
    assert (seen.transparent, seen.data.background) == (20, "white")
    assert (seen.images[:, :, 0, 0] == 255).all()


def test_an_alpha_channel_that_is_opaque_needs_no_background(tmp_path):
    photographs.save(np.full((8, 8, 4), 255.0), tmp_path / "a.png")
    photographs.save(np.zeros((8, 8, 3)), tmp_path / "b.png")
    assert survey(tmp_path).data.background == ""


def test_exact_duplicates_are_counted(tmp_path):
    photographs.faces(tmp_path, 5)
    for name in ("copy.png", "again.png"):
        (tmp_path / name).write_bytes((tmp_path / "001.png").read_bytes())
    assert survey(tmp_path).duplicates == 2


def test_broken_files_are_counted_and_named(tmp_path):
    photographs.faces(tmp_path, 6)
    whole = (tmp_path / "002.png").read_bytes()
    (tmp_path / "002.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "notes.txt").write_text("no image")
    with pytest.raises(DataError, match=r"2 of 7 files cannot be used as images; .*002\.png.*notes\.txt"):
        survey(tmp_path)


def test_of_many_images_a_part_is_decoded_and_all_are_read(tmp_path, monkeypatch):
    photographs.faces(tmp_path, 30)
    monkeypatch.setattr(module, "DECODED", 8)
    monkeypatch.setattr(module, "KEPT", 8)
    seen = survey(tmp_path)
    assert (seen.count, len(seen.images)) == (30, 8)
    assert seen.decoded == 8
    assert seen.decoding > 0
    (tmp_path / "029.png").write_bytes(b"broken")
    with pytest.raises(DataError, match=r"1 of 30 files .*029\.png"):
        survey(tmp_path)


def test_images_that_take_long_to_decode_are_few(tmp_path, monkeypatch):
    photographs.faces(tmp_path, 60)
    clock = iter(range(10**6))
    monkeypatch.setattr(module.time, "thread_time", lambda: next(clock))  # a second for each image
    monkeypatch.setattr(module, "SECONDS", 12.0)
    seen = survey(tmp_path)
    assert 8 <= len(seen.images) == seen.decoded <= 24
    assert seen.decoding == pytest.approx(60)
    assert seen.count == 60


@pytest.mark.parametrize("shape", [(30, 3, 12, 12), (30, 12, 12, 3), (30, 12, 12)])
def test_arrays(tmp_path, shape):
    images = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    np.savez(tmp_path / "a.npz", images=images, labels=np.arange(30) % 3 + 5)
    seen = survey(tmp_path / "a.npz", resolution=12)
    assert (seen.count, seen.classes, seen.data.source) == (30, 3, "array")
    assert seen.data.channels == (1 if len(shape) == 3 else 3)
    assert seen.class_names == ("5", "6", "7")
    assert seen.sides == (12, 12, 12)


def test_nothing_is_an_error(tmp_path):
    with pytest.raises(DataError, match="but there is none"):
        survey(tmp_path / "absent")
    with pytest.raises(DataError, match="there is no file"):
        survey(tmp_path)
