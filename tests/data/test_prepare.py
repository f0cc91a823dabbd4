"""Every source ends in the same files; every kind of damage in an error that names the file, and nothing is left."""

import gzip
import hashlib
import io
import itertools
import json
import os
import pickle
import struct
import tarfile
import warnings
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
from pictures_on_disk import FILES, ORDER, config, picture, png, refused, write_folder, write_tar, write_zip
from PIL import Image

from cmcore import limits
from cmcore.atomic import replacing
from cmcore.config import ConfigError, read
from cmcore.data.images import ImageData
from cmcore.data.settings import DataConfig
from cmcore.data.sources import decode as decoding
from cmcore.data.sources import files
from cmcore.data.sources.decode import decode, fit
from cmcore.data.sources.listing import classes_of
from cmcore.data.sources.prepare import prepare
from cmcore.data.sources.statistics import statistics
from cmcore.errors import DataError

CIFAR = Path(__file__).parents[3] / "shared" / "data" / "cifar10-jpeg.tar.xz"


def test_digits(tmp_path):
    from sklearn.datasets import load_digits

    manifest = prepare(DataConfig(), tmp_path / "data")
    data, digits = ImageData.open(tmp_path / "data"), load_digits()
    assert len(data) == 1797
    assert (data.shape, data.classes, data.digest) == ((1, 8, 8), 10, manifest["sha256"])
    np.testing.assert_array_equal(data.labels, digits.target)
    assert np.abs(data.images[:, 0] - digits.images * 255 / 16).max() <= 0.5
    assert data.images.max() == 255


@pytest.mark.parametrize("kind", ["folder", "zip", "tar", "tar.gz", "tar.xz"])
def test_folder_and_archives_give_the_same_bytes(tmp_path, kind):
    if kind == "folder":
        source, path = "folder", write_folder(tmp_path / "in")
    elif kind == "zip":
        source, path = "archive", write_zip(tmp_path / "in.zip")
    else:
        source, path = "archive", write_tar(tmp_path / f"in.{kind}", mode="w" + kind[3:].replace(".", ":"))
    seen = []
    manifest = prepare(config(source, path), tmp_path / "out", lambda done, total: seen.append((done, total)))
    data = ImageData.open(tmp_path / "out")
    assert seen == [(4, 4)]
    assert data.labels.tolist() == [0, 0, 1, 1]
    for row, name in enumerate(ORDER):
        expected = np.asarray(Image.open(io.BytesIO(FILES[name]))).transpose(2, 0, 1)
        np.testing.assert_array_equal(data.images[row], expected)
    assert manifest["class_names"] == ["cat", "dog"]
    assert manifest["class_counts"] == [2, 2]
    content = b"".join((tmp_path / "out" / name).read_bytes() for name in ("images.npy", "labels.npy"))
    assert manifest["sha256"] == hashlib.sha256(content).hexdigest()
    np.testing.assert_array_equal(np.load(tmp_path / "out" / "images.npy"), data.images)
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([path.name, "out"])


def test_manifest_statistics(tmp_path):
    manifest = prepare(config("folder", write_folder(tmp_path / "in")), tmp_path / "out")
    x = ImageData.open(tmp_path / "out").images.astype(np.float64) / 127.5 - 1
    np.testing.assert_allclose([manifest["mean"], manifest["std"]], [x.mean(), x.std()], rtol=1e-12)
    np.testing.assert_allclose(manifest["channel_mean"], x.mean((0, 2, 3)), rtol=1e-12)
    np.testing.assert_allclose(manifest["channel_std"], x.std((0, 2, 3)), rtol=1e-12)
    assert statistics(np.eye(1, 256, 255, dtype=np.int64))["std"] == 0


def test_a_subfolder_alone(tmp_path):
    content = {f"train/{name}": data for name, data in FILES.items()} | {
        "test/cat/1.png": png(9),
        "notes.txt": b"hello",
    }
    for source, path in (
        ("archive", write_tar(tmp_path / "in.tar.xz", content)),
        ("folder", write_folder(tmp_path / "in", content)),
    ):
        manifest = prepare(config(source, path, subfolder="train"), tmp_path / "out")
        assert (manifest["count"], manifest["class_names"]) == (4, ["cat", "dog"])
        refused(config(source, path, subfolder="val"), tmp_path / source / "out", "expected images below 'val'")


@pytest.mark.parametrize(
    ("names", "labels", "classes"),
    [
        (["a.png", "b.png"], [0, 0], ()),
        (["all/a.png", "all/b.png"], [0, 0], ()),
        (["top/x/a.png", "top/y/b.png"], [0, 1], ("x", "y")),
        (["y/deep/a.png", "x/b.png", "y/c.png"], [1, 0, 1], ("x", "y")),
    ],
)
def test_class_folders_are_optional(names, labels, classes):
    got, found = classes_of(names, "here")
    assert (got.tolist(), found) == (labels, classes)


def test_images_beside_class_folders_are_refused(tmp_path):
    path = write_zip(tmp_path / "in.zip", FILES | {"stray.png": png(5)})
    refused(config("archive", path), tmp_path / "w" / "out", "stray.png lies beside the class folders")


def test_mixed_sizes_are_cropped_at_the_centre_and_resized(tmp_path):
    wide = np.zeros((4, 10, 3), np.uint8)
    wide[:, 3:7] = 200  # the central square
    buffer = io.BytesIO()
    Image.fromarray(wide).save(buffer, "PNG")
    content = {"1.png": buffer.getvalue(), "2.png": png(1, (9, 16)), "3.jpg": png(2, (3, 2), kind="JPEG")}
    prepare(config("folder", write_folder(tmp_path / "in", content)), tmp_path / "out")
    data = ImageData.open(tmp_path / "out")
    assert (data.images[0] == 200).all()
    expected = picture(1, (9, 16)).crop((0, 3, 9, 12)).resize((4, 4), Image.Resampling.LANCZOS)
    np.testing.assert_array_equal(data.images[1], np.asarray(expected).transpose(2, 0, 1))


def test_shrinking_averages():
    checks = (np.indices((64, 64)).sum(0) % 2 * 255).astype(np.uint8)
    assert np.abs(fit(checks[None], 8).astype(int) - 127).max() <= 2  # without antialiasing: 0 or 255


def test_grey_and_colour(tmp_path):
    for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK"):
        data = png(1, mode=mode, kind="TIFF" if mode == "CMYK" else "PNG")
        assert decode(data, 1, name=mode).shape == (1, 4, 4)
        colour = decode(data, 3, name=mode)
        assert colour.shape == (3, 4, 4)
        assert (len(np.unique(colour, axis=0)) == 1) == (mode in ("1", "L", "LA"))


def transparent(mode: str) -> bytes:
    """A 2x1 image: an opaque grey of 100, and a hidden bright pixel. Its alpha is 0, or 51 where the mode allows it."""
    buffer = io.BytesIO()
    if mode in ("RGB", "L", "P"):  # one colour, or one entry of the palette, is transparent
        grey = Image.fromarray(np.array([[100, 250]], np.uint8))
        image = grey.convert(mode) if mode != "P" else grey.convert("RGB").quantize(2)
        key = {"RGB": (250, 250, 250), "L": 250}.get(mode, image.getpixel((1, 0)))
        image.save(buffer, "PNG", transparency=key)
    else:
        image = Image.fromarray(np.array([[[100, 255], [250, 51]]], np.uint8), "LA")
        image.convert(mode).save(buffer, "TIFF" if mode == "PA" else "PNG")
    return buffer.getvalue()


@pytest.mark.parametrize("mode", ["RGBA", "LA", "RGB", "L", "P"])
@pytest.mark.parametrize("channels", [1, 3])
def test_transparency_is_laid_over_the_background_or_refused(mode: str, channels: int):
    data, alpha = transparent(mode), 0.2 if mode in ("RGBA", "LA") else 0.0
    with pytest.raises(
        DataError, match=r"in/a\.png: expected an opaque image, got transparency; see `data\.background`"
    ):
        decode(data, channels, name="in/a.png")
    for background, value in (("white", 255), ("black", 0)):
        pixels = decode(data, channels, name="a", background=background)[:, 0].astype(int)
        assert (pixels[:, 0] == 100).all()
        assert np.abs(pixels[:, 1] - ((1 - alpha) * value + alpha * 250)).max() <= 1


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_an_opaque_alpha_channel_changes_nothing(mode: str):
    image = picture(1).convert(mode)
    image.putalpha(255)
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    expected = np.asarray(image.convert("RGB")).transpose(2, 0, 1)
    np.testing.assert_array_equal(decode(buffer.getvalue(), 3, name=mode), expected)


def deep_png(colour: int, channels: int) -> bytes:
    """A 4x4 PNG of 16 bits a channel, of any colour type."""
    rows = b"".join(b"\0" + struct.pack(f">{4 * channels}H", *[3000] * 4 * channels) for _ in range(4))
    parts = [
        (b"IHDR", struct.pack(">IIBBBBB", 4, 4, 16, colour, 0, 0, 0)), (b"IDAT", zlib.compress(rows)), (b"IEND", b""),
    ]  # fmt: skip
    body = b"".join(struct.pack(">I", len(d)) + k + d + struct.pack(">I", zlib.crc32(k + d)) for k, d in parts)
    return b"\x89PNG\r\n\x1a\n" + body


@pytest.mark.parametrize(("colour", "channels"), [(0, 1), (2, 3), (4, 2), (6, 4)], ids=["grey", "rgb", "la", "rgba"])
def test_sixteen_bits_a_channel_are_refused_in_every_colour_type(colour: int, channels: int):
    for wanted in (1, 3):
        with pytest.raises(DataError, match=r"deep\.png: expected 8 bits a channel, got .*; convert it first"):
            decode(deep_png(colour, channels), wanted, name="deep.png", background="white")


def test_pictures_are_turned_upright():
    buffer, exif = io.BytesIO(), Image.Exif()
    exif[decoding.ORIENTATION] = 6  # the camera was turned: rotate by 270 degrees
    picture(1, (4, 6)).save(buffer, "PNG", exif=exif)
    expected = np.asarray(picture(1, (4, 6)).transpose(Image.Transpose.ROTATE_270)).transpose(2, 0, 1)
    np.testing.assert_array_equal(decode(buffer.getvalue(), 3, name="turned"), expected)


def huge_png(width: int, height: int) -> bytes:
    """A PNG whose header announces this size, with hardly any data."""
    chunks = [
        (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)),
        (b"IDAT", zlib.compress(bytes(64))),
        (b"IEND", b""),
    ]
    body = b"".join(struct.pack(">I", len(d)) + k + d + struct.pack(">I", zlib.crc32(k + d)) for k, d in chunks)
    return b"\x89PNG\r\n\x1a\n" + body


NOISE = np.random.default_rng(0).bytes(400)
BAD_IMAGES = {
    "not_an_image": (b"just text", "cannot be read as an image"),
    "empty": (b"", "cannot be read as an image"),
    "truncated_png": (png(1, (64, 64))[:5000], "cannot be read as an image"),
    "truncated_jpeg": (png(1, (64, 64), kind="JPEG")[:1500], "truncated"),
    "damaged_png": (png(1, (32, 32))[:60] + NOISE + png(1, (32, 32))[460:], "cannot be read as an image"),
    "bomb": (huge_png(8193, 8193), "decompression bomb"),
    "bomb_that_pillow_warns_of": (huge_png(10_000, 10_000), "decompression bomb"),
    "bomb_that_pillow_refuses": (huge_png(60_000, 60_000), "decompression bomb"),
    "postscript": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 4 4\n", "cannot be read as an image"),
}


@pytest.mark.parametrize("kind", BAD_IMAGES)
def test_wrong_files_stop_it_by_name(tmp_path, kind):
    data, message = BAD_IMAGES[kind]
    content = FILES | {f"dog/{kind}.png": data}
    refused(
        config("folder", write_folder(tmp_path / "in", content)), tmp_path / "w" / "out", f"{kind}.png: .*{message}"
    )
    refused(
        config("archive", write_tar(tmp_path / "in.tar", content, "w")),
        tmp_path / "v" / "out",
        f"{kind}.png.*{message}",
    )


def test_litter_is_passed_over(tmp_path):
    content = FILES | {"cat/.DS_Store": b"x", "__MACOSX/cat/._2.png": b"x"}
    assert prepare(config("archive", write_zip(tmp_path / "in.zip", content)), tmp_path / "out")["count"] == 4


@pytest.mark.parametrize(
    "name", ["../evil.png", "cat/../../evil.png", "/etc/evil.png", "C:\\evil.png", "..\\evil.png", "\\evil.png"]
)
def test_escaping_paths_are_refused(tmp_path, name):
    content = FILES | {name: png(1)}
    for path in (write_zip(tmp_path / "in.zip", content), write_tar(tmp_path / "in.tar.gz", content, "w:gz")):
        refused(config("archive", path), tmp_path / path.name[:5] / "w" / "out", "evil.png.*leaves the archive")


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE])
def test_links_and_devices_in_a_tar_are_refused(tmp_path, kind):
    def change(member):
        if member.name == "dog/a.png":
            member.type, member.linkname, member.size = kind, "/etc/passwd", 0

    path = write_tar(tmp_path / "in.tar", mode="w", change=change)
    refused(config("archive", path), tmp_path / "w" / "out", r"dog/a\.png is a link or a device")


def test_links_in_a_zip_are_refused(tmp_path):
    path = write_zip(tmp_path / "in.zip")
    with zipfile.ZipFile(path, "a") as archive:
        link = zipfile.ZipInfo("cat/link.png")
        link.external_attr = 0o120777 << 16
        archive.writestr(link, "/etc/passwd")
    refused(config("archive", path), tmp_path / "w" / "out", r"cat/link\.png is a link")


def test_links_out_of_a_folder_are_refused(tmp_path):
    path = write_folder(tmp_path / "in")
    (tmp_path / "secret.png").write_bytes(png(7))
    (path / "cat" / "link.png").symlink_to(tmp_path / "secret.png")
    refused(config("folder", path), tmp_path / "w" / "out", r"link\.png: is a link")
    (path / "cat" / "link.png").unlink()
    (path / "cat" / "link.png").symlink_to(path / "cat" / "2.png")
    assert prepare(config("folder", path), tmp_path / "out")["count"] == 5


def test_folders_that_cannot_be_read_to_their_end_are_refused(tmp_path):
    path = write_folder(tmp_path / "in")
    (path / "cat" / "self.png").symlink_to("self.png")
    refused(config("folder", path), tmp_path / "a" / "out", r"self\.png: cannot be read; is it a link to itself\?")
    (path / "cat" / "self.png").unlink()
    os.mkfifo(path / "cat" / "pipe.png")
    refused(config("folder", path), tmp_path / "b" / "out", r"pipe\.png: expected a plain file")
    (path / "cat" / "pipe.png").unlink()
    (path / "/".join("d" * 70)).mkdir(parents=True)
    refused(config("folder", path), tmp_path / "c" / "out", "expected folders at most 64 deep")


@pytest.mark.parametrize("source", ["folder", "archive", "array"])
def test_a_path_that_is_a_link_to_itself_is_refused(tmp_path, source):
    (tmp_path / "in.npz").symlink_to("in.npz")
    refused(config(source, tmp_path / "in.npz"), tmp_path / "w" / "out", "in.npz")


def test_messages_are_one_line_without_addresses(tmp_path):
    path = write_folder(tmp_path / "in", {"cat/a\n\x1b[2J.png": b"nonsense"})
    with pytest.raises(
        DataError, match=r"a\\n\\x1b\[2J\.png: cannot be read as an image \(expected one of BMP"
    ) as caught:
        prepare(config("folder", path), tmp_path / "out")
    assert str(caught.value).isprintable()
    copy = pickle.loads(pickle.dumps(caught.value))
    assert str(copy) == str(caught.value)


def test_names_that_stand_twice_are_refused(tmp_path):
    path = tmp_path / "in.zip"
    with warnings.catch_warnings(), zipfile.ZipFile(path, "w") as archive:
        warnings.simplefilter("ignore")
        archive.writestr("a.png", png(1))
        archive.writestr("a.png", png(2))
    refused(config("archive", path), tmp_path / "w" / "out", r"a\.png stands twice")


def test_large_members_are_refused_unread(tmp_path, monkeypatch):
    monkeypatch.setattr(limits, "FILE_BYTES", 10)
    for path in (write_zip(tmp_path / "in.zip"), write_tar(tmp_path / "in.tar", mode="w")):
        with pytest.raises(DataError, match=r"dog/b\.png is too large: expected at most 10 bytes"):
            list(files.entries(path))


def test_an_endless_tail_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(limits, "TAIL_BYTES", 2**20)
    path = write_tar(tmp_path / "in.tar", mode="w")
    sound = path.read_bytes()
    path.write_bytes(gzip.compress(sound + bytes(2**19)))
    assert [entry.name for entry in files.entries(path)] == list(FILES)
    path.write_bytes(gzip.compress(sound + bytes(2**22)))
    refused(config("archive", path), tmp_path / "w" / "out", "goes on for more than")


@pytest.mark.parametrize(("mode", "step"), [("w", 512), ("w:gz", 97), ("w:xz", 97)])
def test_a_tar_cut_off_anywhere_is_refused(tmp_path, mode, step):
    whole = write_tar(tmp_path / "whole.tar", mode=mode).read_bytes()
    sound = {tuple(sorted(FILES.items()))}
    path = tmp_path / "cut.tar"
    end = whole.rstrip(b"\0") if mode == "w" else whole  # a plain tar may lose some of the zeros after its end mark
    for length in itertools.chain(range(0, len(end), step), [len(end) - 1]):
        path.write_bytes(whole[:length])
        with pytest.raises(DataError, match=r"cut\.tar"):
            sound.add(tuple((entry.name, entry.read()) for entry in files.entries(path)))
    assert len(sound) == 1


def test_a_damaged_archive_is_refused_or_read_right(tmp_path):
    """Flip bytes all over: either an error that names the archive, or exactly the files that were put in."""
    rng, refusals = np.random.default_rng(0), 0
    for name, write in (
        ("in.zip", write_zip),
        ("in.tar.gz", lambda p: write_tar(p, mode="w:gz")),
        ("in.tar.xz", write_tar),
    ):
        path = write(tmp_path / name)
        whole = path.read_bytes()
        for position in rng.integers(0, len(whole), 40):
            broken = bytearray(whole)
            broken[position] ^= 0xFF
            path.write_bytes(broken)
            try:
                got = [entry.read() for entry in files.entries(path)]
            except DataError as error:
                refusals += 1
                assert name in str(error)  # noqa: PT017 (some flips, such as a date's, do no harm)
            else:
                assert got == list(FILES.values())
    assert refusals > 60


def test_a_damaged_header_in_the_middle_of_a_tar_is_refused(tmp_path):
    path = write_tar(tmp_path / "in.tar", mode="w")
    broken = bytearray(path.read_bytes())
    broken[1024 + 148] ^= 0xFF  # checksum of the second header; tarfile itself would end the listing here
    path.write_bytes(broken)
    refused(config("archive", path), tmp_path / "w" / "out", "damaged or cut off at byte 1024")


def test_gzip_checksum_at_the_very_end_is_checked(tmp_path):
    path = write_tar(tmp_path / "in.tar.gz", mode="w:gz")
    broken = bytearray(path.read_bytes())
    broken[-6] ^= 1
    path.write_bytes(broken)
    with pytest.raises(gzip.BadGzipFile):
        gzip.decompress(broken)
    refused(config("archive", path), tmp_path / "w" / "out", "not a sound zip or tar")


def test_an_encrypted_zip_is_refused(tmp_path):
    path = write_zip(tmp_path / "in.zip")
    data = bytearray(path.read_bytes())
    for mark, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):  # set "encrypted" in every header
        at = data.find(mark)
        while at >= 0:
            data[at + offset] |= 1
            at = data.find(mark, at + 1)
    path.write_bytes(data)
    refused(config("archive", path), tmp_path / "w" / "out", "cannot be unpacked .*encrypted")


@pytest.mark.parametrize("layout", ["nhwc", "nchw"])
@pytest.mark.parametrize("labelled", [True, False])
def test_npz(tmp_path, layout, labelled):
    images = np.random.default_rng(0).integers(0, 256, (5, 3, 4, 4), dtype=np.uint8)
    stored = {"images": images if layout == "nchw" else images.transpose(0, 2, 3, 1)}
    if labelled:
        stored["labels"] = np.array([0, 2, 1, 2, 0], np.uint8)
    np.savez_compressed(tmp_path / "in.npz", **stored)
    manifest = prepare(config("array", tmp_path / "in.npz"), tmp_path / "out")
    data = ImageData.open(tmp_path / "out")
    np.testing.assert_array_equal(data.images, images)
    assert data.labels.tolist() == ([0, 2, 1, 2, 0] if labelled else [0] * 5)
    assert manifest["class_names"] == (["0", "1", "2"] if labelled else [])


def test_npy_of_grey_images_of_another_size(tmp_path):
    images = np.full((3, 6, 8), 70, np.uint8)
    np.save(tmp_path / "in.npy", images)
    prepare(config("array", tmp_path / "in.npy", channels=1), tmp_path / "out")
    data = ImageData.open(tmp_path / "out")
    assert data.images.shape == (3, 1, 4, 4)
    assert (data.images == 70).all()


GOOD = np.zeros((5, 4, 4, 3), np.uint8)
BAD_ARRAYS = {
    "float": ({"images": GOOD.astype(np.float32)}, "expected images of type uint8 .*, got float32"),
    "channels": ({"images": GOOD[..., :2]}, r"expected images of shape .*, got \(5, 4, 4, 2\)"),
    "flat": ({"images": GOOD.reshape(5, -1)}, r"got \(5, 48\)"),
    "empty": ({"images": GOOD[:0]}, r"got \(0, 4, 4, 3\)"),
    "keys": ({"pictures": GOOD, "other": GOOD}, "expected images under one of .*, got pictures, other"),
    "pickle": ({"images": np.array([None, {}], object)}, "expected an array of numbers, got Python objects"),
    "label_count": ({"images": GOOD, "labels": np.arange(4)}, r"expected whole-number labels \(5,\), got int64 \(4,\)"),
    "label_type": ({"images": GOOD, "labels": np.zeros(5)}, "whole-number labels"),
    "label_sign": ({"images": GOOD, "labels": np.arange(5) - 1}, "expected labels from 0 on, got -1 to 3"),
}


@pytest.mark.parametrize("kind", BAD_ARRAYS)
def test_wrong_arrays_say_what_was_expected(tmp_path, kind):
    stored, message = BAD_ARRAYS[kind]
    path = tmp_path / f"{kind}.npz"
    np.savez(path, **stored)
    refused(config("array", path), tmp_path / "w" / "out", rf"{kind}\.npz: .*{message}")


@pytest.mark.parametrize("keep", [0, 3, 100, 300])
def test_truncated_arrays_are_refused(tmp_path, keep):
    np.save(tmp_path / "in.npy", GOOD)
    np.savez(tmp_path / "in.npz", images=GOOD)
    for path in (tmp_path / "in.npy", tmp_path / "in.npz"):
        path.write_bytes(path.read_bytes()[:keep])
        refused(
            config("array", path),
            tmp_path / path.suffix / "out",
            rf"in{path.suffix}: (cannot be read|is not a sound zip)",
        )


def test_dense_npz_is_refused_unread(tmp_path, monkeypatch):
    monkeypatch.setattr(limits, "ZIP_BYTES", 10_000)
    np.savez_compressed(tmp_path / "in.npz", images=np.zeros((1000, 8, 8, 3), np.uint8))
    refused(config("array", tmp_path / "in.npz"), tmp_path / "w" / "out", "decompression bomb")


def test_checksum_and_missing_paths(tmp_path):
    path = write_zip(tmp_path / "in.zip")
    right = hashlib.sha256(path.read_bytes()).hexdigest()
    prepare(config("archive", path, sha256=right), tmp_path / "out")
    refused(config("archive", path, sha256="0" * 64), tmp_path / "w" / "out", f"expected sha256 0{{64}}, got {right}")
    refused(config("folder", tmp_path / "no"), tmp_path / "x" / "out", "no: expected a folder")
    refused(config("archive", tmp_path / "no.zip"), tmp_path / "y" / "out", r"no\.zip: expected a file")
    write_folder(tmp_path / "none", {"dog/.hidden": b""})
    refused(config("folder", tmp_path / "none"), tmp_path / "z" / "out", "expected images")


def test_a_failure_while_writing_leaves_nothing(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("cmcore.data.sources.prepare.os.fsync", full)
    refused(
        config("folder", write_folder(tmp_path / "in")), tmp_path / "w" / "out", "cannot be written .*No space left"
    )


def test_leftovers_of_a_killed_process_go_away(tmp_path):
    def interrupted():
        with replacing(tmp_path / "out") as folder:
            (folder / "half").write_text("written")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert list(tmp_path.iterdir()) == []
    write_folder(tmp_path / ".out.partial", {"half": b"written"})
    for text in ("first", "second"):
        with replacing(tmp_path / "out") as folder:
            assert list(folder.iterdir()) == []
            (folder / "whole").write_text(text)
        assert [p.name for p in tmp_path.iterdir()] == ["out"]
        assert (tmp_path / "out" / "whole").read_text() == text


@pytest.mark.parametrize(
    ("fields", "key"),
    [
        ({"source": "digits", "resolution": 16}, "resolution"),
        ({"source": "digits", "channels": 3}, "channels"),
        ({"source": "digits", "path": "here"}, "path"),
        ({"source": "folder"}, "path"),
        ({"source": "folder", "path": "p", "channels": 2}, "channels"),
        ({"source": "folder", "path": "p", "subfolder": "../up"}, "subfolder"),
        ({"source": "folder", "path": "p", "subfolder": "/root"}, "subfolder"),
        ({"source": "folder", "path": "p", "sha256": "0" * 64}, "sha256"),
        ({"source": "archive", "path": "p", "sha256": "abc"}, "sha256"),
        ({"source": "array", "path": "p", "resolution": 0}, "resolution"),
        ({"source": "lmdb", "path": "p"}, "source"),
        ({"sauce": "digits"}, "sauce"),
    ],
)
def test_wrong_parameters_name_their_key(fields, key):
    with pytest.raises(ConfigError, match=rf"^data\.{key}: "):
        read(DataConfig, fields, "data")


@pytest.mark.skipif(not CIFAR.is_file(), reason="../shared/data/cifar10-jpeg.tar.xz is not here")
def test_real_jpeg_archive(tmp_path):
    """The first images of the archive, packed anew: unpacking all of it takes half a minute."""
    with tarfile.open(CIFAR) as archive:
        members = list(itertools.islice((m for m in archive if m.isfile()), 40))
        content = {m.name: archive.extractfile(m).read() for m in members}
    renamed = {
        name.replace("0", "x", 1) if i % 2 else name.replace("airplane", "bird"): d
        for i, (name, d) in enumerate(content.items())
    }
    path = write_tar(tmp_path / "part.tar.xz", renamed)
    manifest = prepare(config("archive", path, subfolder="train", resolution=32), tmp_path / "out")
    assert (manifest["count"], manifest["classes"], manifest["shape"]) == (40, 2, [3, 32, 32])
    data = ImageData.open(tmp_path / "out")
    for row, name in enumerate(sorted(renamed)):
        np.testing.assert_array_equal(data.images[row].transpose(1, 2, 0), Image.open(io.BytesIO(renamed[name])))
    assert manifest["class_names"] == ["airplane", "bird"]
    assert json.loads((tmp_path / "out" / "manifest.json").read_text()) == manifest
